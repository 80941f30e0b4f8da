"""Who may call the routes.

The WebUI guards neither with ``--gradio-auth`` nor with ``--api-auth`` what an extension adds, so each route has a
check of its own: the API's credentials where it has some, else the page's login where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from secrets import compare_digest
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import initialize_util, shared

_BASIC = HTTPBasic(auto_error=False)


def served() -> bool:
    """Whether the WebUI was asked to serve an API. The page itself calls none of the routes."""
    return bool(shared.cmd_opts.api or shared.cmd_opts.nowebui)


def guards(app: FastAPI) -> list[Any]:
    """The dependencies of each route; none where the WebUI asks nobody for a password."""
    if shared.cmd_opts.api_auth:
        return [Depends(_check(_users(_pairs(shared.cmd_opts.api_auth))))]
    logins = _users(initialize_util.get_gradio_auth_creds())
    return [Depends(_check(logins, _session_of(app)))] if logins else []


def asks_nobody(api: bool) -> bool:
    """Whether who calls a route (``api``), or opens the page, is asked for no password."""
    if api and shared.cmd_opts.api_auth:
        return False
    return not _users(initialize_util.get_gradio_auth_creds())


def _pairs(setting: str) -> Iterable[tuple[str, ...]]:
    return (tuple(entry.strip().split(":", 1)) for entry in setting.split(",") if entry.strip())


def _users(pairs: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """Passwords by name. A login without a password lets nobody in, as in gradio."""
    return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}


def _session_of(app: FastAPI) -> Callable[[Request], Any]:
    """gradio's own function from a request to the user who is logged in, by the session's cookie."""
    for route in app.routes:
        if getattr(route, "path", "") == "/user":
            return getattr(route, "endpoint", _nobody)
    return _nobody


def _nobody(request: Request) -> None:
    return None


def _check(users: Mapping[str, str], user_of: Callable[[Request], Any] = _nobody) -> Callable[..., None]:
    def check(request: Request, given: HTTPBasicCredentials | None = Depends(_BASIC)) -> None:
        if user_of(request) is not None or (given is not None and _known(users, given)):
            return
        raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    return check


def _known(users: Mapping[str, str], given: HTTPBasicCredentials) -> bool:
    password = users.get(given.username, "")
    return bool(password) and compare_digest(given.password.encode(), password.encode())
