"""The routes under /ip-adapter."""

from __future__ import annotations

from collections.abc import Callable
from secrets import compare_digest
from typing import Any

from fastapi import Body, Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import shared

from .. import __version__
from ..errors import IPAdapterError, UnitError
from ..files.embeds import EmbedsFolder
from ..unit import schema
from ..unit.presets import Presets
from .models import Models


def register(app: FastAPI, models: Models) -> None:
    """Adds the routes; they ask for the API's own credentials (``--api-auth``) where it has any."""
    guard = [Depends(_authenticate(shared.cmd_opts.api_auth))] if shared.cmd_opts.api_auth else []

    def add(path: str, endpoint: Callable[..., Any], method: str) -> None:
        app.add_api_route(f"/ip-adapter/{path}", endpoint, methods=[method], dependencies=guard)

    def version() -> dict[str, str]:
        return {"version": __version__}

    def model_list() -> dict[str, list[str]]:
        models.refresh()
        return {"model_list": models.model_names()}

    def inspect(body: Any = Body(...)) -> Any:
        return _answer(lambda: models.inspect(_model_of(body)))

    def presets() -> Any:
        held = models.presets()
        return _answer(lambda: {"presets": {name: held.load(name) for name in held.names()}})

    def save_preset(body: Any = Body(...)) -> Any:
        given = _object(body)
        return _answer(lambda: {"preset": models.presets().save(given.get("name"), _unit_of(given))})

    def delete_preset(body: Any = Body(...)) -> Any:
        return _answer(lambda: _deleted(models.presets(), _object(body).get("name")))

    def embeds() -> Any:
        return _answer(lambda: {"embeds": models.shelf().saved.reports()})

    def save_embeds(body: Any = Body(...)) -> Any:
        given = _object(body)
        title = given.get("title", "")
        return _answer(lambda: {"embeds": models.shelf().save(given.get("name"), _unit_of(given), title)})

    def delete_embeds(name: str) -> Any:
        return _answer(lambda: _deleted(models.shelf().saved, name))

    def folders() -> Any:
        held = models.shelf().folders
        return _answer(lambda: {"folders": {name: len(held.pictures(name)) for name in held.names()}})

    add("version", version, "GET")
    add("presets", presets, "GET")
    add("presets", save_preset, "POST")
    add("presets", delete_preset, "DELETE")
    add("embeds", embeds, "GET")
    add("embeds", save_embeds, "POST")
    add("embeds/{name}", delete_embeds, "DELETE")
    add("folders", folders, "GET")
    add("model_list", model_list, "GET")
    add("schema", schema, "GET")
    add("inspect", inspect, "POST")


def _model_of(body: Any) -> str:
    model = body.get("model") if isinstance(body, dict) else None
    if not isinstance(model, str) or not model.strip():
        raise UnitError("model", model, 'a JSON object {"model": name}, the name as model_list lists it')
    return model


def _object(body: Any) -> dict[str, Any]:
    return body if isinstance(body, dict) else {}


def _unit_of(given: dict[str, Any]) -> dict[str, Any]:
    unit = given.get("unit")
    if not isinstance(unit, dict):
        raise UnitError("unit", unit, 'a JSON object {"name": ..., "unit": {...}}')
    return unit


def _deleted(folder: Presets | EmbedsFolder, name: Any) -> dict[str, Any]:
    folder.remove(name)
    return {"deleted": name}


def _answer(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except IPAdapterError as error:
        content = {"error": type(error).__name__, "detail": error.detail, "body": "", "errors": str(error)}
        return JSONResponse(content, status_code=error.status_code)


def _authenticate(setting: str) -> Callable[..., None]:
    """The check of the WebUI's own API, whose dependency covers only its own routes."""
    users = dict(entry.strip().split(":", 1) for entry in setting.split(","))

    def check(credentials: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:
        password = users.get(credentials.username, "")
        known = credentials.username in users
        if not (known and compare_digest(credentials.password.encode(), password.encode())):
            raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    return check
