"""A request's body: JSON, bounded in size and in the time that it takes to arrive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool

SMALL, PICTURES = 2**20, 128 * 2**20  # bytes: of names and numbers; of pictures as base64
SECONDS = 60.0
# Bytes beyond the limit that are read and dropped: a client that still sends would see a broken connection, no answer
_DRAINED = 16 * 2**20


def json_body(limit: int) -> Callable[..., Any]:
    """A dependency that gives the body as JSON of at most ``limit`` bytes. It is solved after the route's guards, so
    nothing is read from a caller without credentials."""

    async def body(request: Request) -> Any:
        try:
            data = await asyncio.wait_for(_read(request, limit), SECONDS)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the request took longer than {SECONDS:g} s to arrive") from None
        # A form of another site may send text, but not this type, without the browser asking first.
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(422, f"Content-Type: got {kind[:60]!r}, expected application/json")
        try:
            return await run_in_threadpool(json.loads, data)  # some bodies take seconds
        except (ValueError, RecursionError):
            raise HTTPException(422, "the body is not JSON; expected a JSON object") from None

    return body


async def _read(request: Request, limit: int) -> bytes:
    stated = request.headers.get("content-length", "")
    size, data = 0, bytearray()
    over = stated.isdigit() and int(stated) > limit
    async for chunk in request.stream():
        size += len(chunk)
        over = over or size > limit
        if not over:
            data += chunk
        elif size > limit + _DRAINED:
            break
    if over:
        raise _too_large(max(size, int(stated) if stated.isdigit() else 0), limit)
    return bytes(data)


def _too_large(size: int, limit: int) -> HTTPException:
    return HTTPException(413, f"the body has {size} bytes or more; at most {limit} are read, send less at a time")
