"""The routes under /ip-adapter/train: trainings in processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Depends

from ..models import Models
from . import access
from .answer import answer, mapping
from .body import SMALL, json_body

Add = Callable[[str, Callable[..., Any], str], None]


def add_train(add: Add, models: Models) -> None:
    """Start, state, stop, and a first look at a folder."""

    def desk() -> Any:
        from ..train.desk import Desk

        return Desk(models, lambda: models.host.serves_others() and access.asks_nobody(api=True))

    def listed() -> Any:
        return answer(lambda: {"runs": [desk().state(name).as_dict() for name in models.runs().names()]})

    def state(name: str) -> Any:
        return answer(lambda: {**desk().state(name).as_dict(), "curves": desk().curves(name)})

    def start(body: Any = Depends(json_body(SMALL))) -> Any:
        given = mapping(body)
        return answer(
            lambda: desk().start(given.get("name"), given.get("config"), given.get("unload", False)).as_dict()
        )

    def stop(name: str, body: Any = Depends(json_body(SMALL))) -> Any:
        return answer(lambda: desk().stop(name).as_dict())

    def look(body: Any = Depends(json_body(SMALL))) -> Any:
        given = mapping(body)
        sizes = given.get("resolution", 512), given.get("bucket_step", 64)
        return answer(lambda: desk().look(given.get("data"), *sizes).as_dict())

    add("train", listed, "GET")
    add("train", start, "POST")
    add("train/look", look, "POST")
    add("train/{name}", state, "GET")
    add("train/{name}/stop", stop, "POST")
