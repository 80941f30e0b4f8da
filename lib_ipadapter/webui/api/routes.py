"""The routes under /ip-adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Depends, FastAPI

from ... import __version__
from ...errors import IPAdapterError, UnitError
from ...prompts.embeds import EmbedsFolder
from ...unit import schema
from ...unit.face import ALL, parse_pose_face
from ...unit.presets import Presets
from ..models import Models
from . import access
from .answer import answer, mapping
from .body import PICTURES, SMALL, json_body
from .evaluate import add_evaluate
from .train import Add, add_train

_LARGEST = 4096  # side of a keypoint picture, pixels


def register(app: FastAPI, models: Models) -> None:
    """Adds the routes where the WebUI serves an API: the page calls none of them."""
    if not access.served():
        return
    guards = access.guards(app)

    def add(path: str, endpoint: Callable[..., Any], method: str) -> None:
        app.add_api_route(f"/ip-adapter/{path}", endpoint, methods=[method], dependencies=guards)

    _add_lists(add, models)
    _add_presets(add, models)
    _add_references(add, models)
    _add_faces(add, models)
    add_train(add, models)
    add_evaluate(add, models)


def _add_lists(add: Add, models: Models) -> None:
    """What there is: version, adapters, the unit's schema."""

    def version() -> dict[str, str]:
        return {"version": __version__}

    def model_list() -> dict[str, list[str]]:
        models.refresh()
        return {"model_list": models.model_names()}

    def inspect(body: Any = Depends(json_body(SMALL))) -> Any:
        return answer(lambda: models.inspect(_model_of(body)))

    add("version", version, "GET")
    add("model_list", model_list, "GET")
    add("schema", schema, "GET")
    add("inspect", inspect, "POST")


def _add_presets(add: Add, models: Models) -> None:
    def presets() -> Any:
        saved = models.presets()
        return {"presets": {name: _fields(saved, name) for name in saved.names()}}

    def save(body: Any = Depends(json_body(SMALL))) -> Any:
        given = mapping(body)
        return answer(lambda: {"preset": models.presets().save(given.get("name"), _unit_of(given))})

    def delete(body: Any = Depends(json_body(SMALL))) -> Any:
        return answer(lambda: _deleted(models.presets(), mapping(body).get("name")))

    add("presets", presets, "GET")
    add("presets", save, "POST")
    add("presets", delete, "DELETE")


def _add_references(add: Add, models: Models) -> None:
    """Saved embeds and folders of pictures."""

    def embeds() -> Any:
        return answer(lambda: {"embeds": models.shelf().saved.reports()})

    def save(body: Any = Depends(json_body(PICTURES))) -> Any:
        given = mapping(body)
        title = given.get("title", "")
        return answer(lambda: {"embeds": models.shelf().save(given.get("name"), _unit_of(given), title)})

    def delete(name: str) -> Any:
        return answer(lambda: _deleted(models.shelf().saved, name))

    def folders() -> Any:
        known = models.shelf().folders
        return answer(lambda: {"folders": {name: len(known.pictures(name)) for name in known.names()}})

    add("embeds", embeds, "GET")
    add("embeds", save, "POST")
    add("embeds/{name}", delete, "DELETE")
    add("folders", folders, "GET")


def _add_faces(add: Add, models: Models) -> None:
    def faces(body: Any = Depends(json_body(PICTURES))) -> Any:
        return answer(lambda: models.find_faces(_picture_of(body), *_drawn_as(body)))

    add("faces", faces, "POST")


def _picture_of(body: Any) -> Any:
    picture = body.get("image") if isinstance(body, dict) else None
    if not isinstance(picture, str) or not picture.strip():
        raise UnitError("image", picture, 'a JSON object {"image": a picture as base64 or a data URI}')
    return picture


def _drawn_as(body: dict[str, Any]) -> tuple[str, tuple[int, int] | None]:
    """Which faces the keypoint picture shows, and its size; None for the picture's own."""
    choice = parse_pose_face(body.get("face", ALL))
    sizes = [body.get(name) for name in ("width", "height")]
    if sizes == [None, None]:
        return choice, None
    for name, value in zip(("width", "height"), sizes, strict=True):
        if not isinstance(value, int) or not 8 <= value <= _LARGEST:
            raise UnitError(name, value, f"a whole number from 8 to {_LARGEST}, with the other one of width and height")
    return choice, (int(sizes[0] or 0), int(sizes[1] or 0))


def _fields(saved: Presets, name: str) -> dict[str, Any]:
    """A preset's fields; of one that cannot be read, the error, so that it does not hide the others."""
    try:
        return saved.load(name)
    except IPAdapterError as error:
        return {"error": str(error)}


def _model_of(body: Any) -> str:
    model = body.get("model") if isinstance(body, dict) else None
    if not isinstance(model, str) or not model.strip():
        raise UnitError("model", model, 'a JSON object {"model": name}, the name as model_list lists it')
    return model


def _unit_of(given: dict[str, Any]) -> dict[str, Any]:
    unit = given.get("unit")
    if not isinstance(unit, dict):
        raise UnitError("unit", unit, 'a JSON object {"name": ..., "unit": {...}}')
    return unit


def _deleted(folder: Presets | EmbedsFolder, name: Any) -> dict[str, Any]:
    folder.remove(name)
    return {"deleted": name}
