"""An uploaded file as a script argument: what copies or pickles arguments (ADetailer, a queue) can do so with it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Upload:
    """name: the file's path in gradio's folder of uploads. data: its bytes, for one that was pickled: a queued job may
    run after the WebUI has emptied that folder."""

    name: str
    data: bytes | None = None

    @property
    def source(self) -> Path | bytes:
        """What images.load takes."""
        path = Path(self.name)
        return path if self.data is None or path.is_file() else self.data

    def __copy__(self) -> Upload:
        return self

    def __deepcopy__(self, memo: Any) -> Upload:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            data: bytes | None = Path(self.name).read_bytes()
        except OSError:
            data = self.data
        return Upload, (self.name, data)


def as_uploads(items: Any) -> Any:
    """gradio's value of a File component: each of its open temporary files as an Upload, closed."""
    if isinstance(items, list):
        return [as_uploads(item) for item in items]
    name = getattr(items, "name", None)
    if not isinstance(name, str) or isinstance(items, Upload):
        return items
    inner = getattr(items, "file", None)
    if inner is not None:
        inner.close()
        # gradio 3 makes an empty file for each value and then gives the object the upload's name instead.
        stray = getattr(inner, "name", name)
        if stray != name and os.path.isfile(stray) and os.path.getsize(stray) == 0:
            os.unlink(stray)
    return Upload(name)
