"""The routes under /ip-adapter/evaluate: evaluations in processes of their own."""

from __future__ import annotations

from typing import Any

from fastapi import Depends
from fastapi.responses import FileResponse

from ..models import Models
from . import access
from .answer import answer, mapping
from .body import SMALL, json_body
from .train import Add


def add_evaluate(add: Add, models: Models) -> None:
    """Start, state with results, the grid, stop."""

    def bench() -> Any:
        from ..train.bench import Bench

        return Bench(models, lambda: models.host.serves_others() and access.asks_nobody(api=True))

    def listed() -> Any:
        return answer(lambda: {"runs": [bench().state(name).as_dict() for name in models.evaluations().names()]})

    def state(name: str) -> Any:
        return answer(lambda: _with_results(bench(), name))

    def grid(name: str) -> Any:
        return answer(lambda: FileResponse(bench().grid(name), media_type="image/png"))

    def start(body: Any = Depends(json_body(SMALL))) -> Any:
        given = mapping(body)
        return answer(
            lambda: bench().start(given.get("name"), given.get("config"), given.get("unload", False)).as_dict()
        )

    def stop(name: str, body: Any = Depends(json_body(SMALL))) -> Any:
        return answer(lambda: bench().stop(name).as_dict())

    add("evaluate", listed, "GET")
    add("evaluate", start, "POST")
    add("evaluate/{name}", state, "GET")
    add("evaluate/{name}/grid", grid, "GET")
    add("evaluate/{name}/stop", stop, "POST")


def _with_results(bench: Any, name: str) -> dict[str, Any]:
    report = bench.report(name)
    return {**bench.state(name).as_dict(), "results": None if report is None else report.content}
