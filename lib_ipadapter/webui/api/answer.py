"""What a route answers, and what it takes a request's body for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi.responses import JSONResponse

from ...errors import IPAdapterError


def mapping(body: Any) -> dict[str, Any]:
    """The object that a body is; an empty one for anything else."""
    return body if isinstance(body, dict) else {}


def answer(work: Callable[[], Any]) -> Any:
    """What ``work`` gives; one of our errors as the WebUI's API answers it."""
    try:
        return work()
    except IPAdapterError as error:
        content = {"error": type(error).__name__, "detail": error.detail, "body": "", "errors": str(error)}
        return JSONResponse(content, status_code=error.status_code)
