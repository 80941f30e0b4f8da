"""A method of a running WebUI, over its API: any image-prompt method that a txt2img request can ask for."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import FileError, ImageError, IPAdapterError
from ..files.disk import read_text
from ..pictures import images
from .items import Item
from .methods import Job, Method

ROUTE = "/sdapi/v1/txt2img"
TIMEOUT = 600.0  # seconds for one picture
PLACES = ("reference", "caption", "seed", "weight")
_PLACE = re.compile("|".join(f"{{{name}}}" for name in PLACES).replace("{", r"\{").replace("}", r"\}"))


def read_payload(path: Path) -> dict[str, Any]:
    """A txt2img body with places to fill in. Raises FileError."""
    try:
        payload = json.loads(read_text(path, 2**28))
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"not JSON: {error}; expected the body of a {ROUTE} request") from None
    if not isinstance(payload, dict):
        raise FileError(path, f"holds no JSON object; expected the body of a {ROUTE} request")
    return payload


def fill(template: Any, values: Mapping[str, Any]) -> Any:
    """``template`` with "{reference}", "{caption}", "{seed}", "{weight}" replaced in all strings, however deep;
    a string that is nothing but a place becomes the value itself, so a number stays one."""
    if isinstance(template, Mapping):
        return {key: fill(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [fill(value, values) for value in template]
    if not isinstance(template, str):
        return template
    if template[1:-1] in values and _PLACE.fullmatch(template):
        return values[template[1:-1]]
    # In one pass, so that a caption that says "{seed}" keeps it
    return _PLACE.sub(lambda match: str(values[match[0][1:-1]]), template)


def png_base64(picture: Image.Image) -> str:
    """A picture as the API takes it."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class WebUIMethod:
    """``methods.Method`` by a WebUI at ``url`` and a payload template. ``http://user:password@host`` gives the
    credentials of --api-auth."""

    at_zero: Method | None = None

    def __init__(self, name: str, url: str, payload: Mapping[str, Any], timeout: float = TIMEOUT) -> None:
        self.name, self.payload, self.timeout = name, payload, timeout
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        host = parts.netloc.rpartition("@")[2]
        if parts.scheme not in ("http", "https") or not host:
            raise IPAdapterError(f"{name}: {url!r} is no address of a WebUI; expected http://host:port")
        self.url = f"{parts.scheme}://{host}{parts.path.rstrip('/')}{ROUTE}"
        self._headers = {"Content-Type": "application/json"}
        if parts.username is not None:
            pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        self._places = set(_PLACE.findall(json.dumps(payload)))

    def weights(self, asked: Sequence[float]) -> Sequence[float | None]:
        """All, if the template has a place for them; else it has no λ."""
        return asked if "{weight}" in self._places else [None]

    def prompt(self, item: Item, asked: str) -> str:
        """As asked."""
        return asked

    def settings(self) -> Mapping[str, Any]:
        """The template. What the WebUI has loaded it does not say: name a checkpoint in override_settings."""
        return {"payload": self.payload}

    def draw(self, jobs: Sequence[Job]) -> list[Image.Image]:
        """One request a picture."""
        return [self._draw(job) for job in jobs]

    def _draw(self, job: Job) -> Image.Image:
        values = {
            "reference": png_base64(job.reference), "caption": job.prompt, "seed": job.seed, "weight": job.weight
        }  # fmt: skip
        answer = self._post(fill(self.payload, values))
        try:
            return images.load(self._first(answer))
        except ImageError as error:
            raise IPAdapterError(f"{self.name}: {self.url} sent a picture that cannot be read: {error}") from None

    def _first(self, answer: Any) -> Any:
        """The first picture of an answer: a grid may stand before it, and ControlNet's maps behind it."""
        pictures = answer.get("images") if isinstance(answer, dict) else None
        if not pictures:
            raise IPAdapterError(f"{self.name}: {self.url} answered without a picture; try the payload by hand")
        try:
            first = json.loads(answer.get("info") or "{}").get("index_of_first_image", 0)
            return pictures[first]
        except (ValueError, TypeError, AttributeError, LookupError):
            raise IPAdapterError(
                f"{self.name}: {self.url} answered with an info that does not say which picture is the first; expected "
                "that of the WebUI"
            ) from None

    def _post(self, body: Any) -> Any:
        request = urllib.request.Request(self.url, json.dumps(body).encode(), self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read(4096).decode("utf-8", "replace")
            raise IPAdapterError(
                f"{self.name}: {self.url} answered {error.code} {error.reason}: {_message(said)}. Mend the payload or "
                "the WebUI and call again, what was drawn is kept"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise IPAdapterError(
                f"{self.name}: no answer from {self.url} ({getattr(error, 'reason', None) or error}, timeout "
                f"{self.timeout:g} s); is the WebUI running with --api? Call again, what was drawn is kept"
            ) from None


def _message(said: str) -> str:
    """The server's message: the first of its usual fields, else the whole text."""
    try:
        content = json.loads(said)
        found = next(content[key] for key in ("message", "errors", "detail", "error") if content.get(key))
    except (ValueError, TypeError, AttributeError, StopIteration):
        found = said
    return " ".join(str(found).split())[:500] or "nothing"
