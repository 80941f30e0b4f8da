"""Downloads encoders by their name."""

from __future__ import annotations

from pathlib import Path

from ..errors import DownloadError
from ..files.download import Progress, download, hub_url
from .spec import ENCODERS


def download_encoder(name: str, folder: Path, progress: Progress | None = None) -> Path:
    """Fetches a registered encoder into ``folder``, which is made. Raises DownloadError."""
    spec = ENCODERS.get(name)
    hint = spec.pretrained_hint if spec else None
    if hint is None:
        known = ", ".join(n for n, s in ENCODERS.items() if s.pretrained_hint)
        raise DownloadError(f"no download is known for the encoder {name!r}; there is one for {known}")
    target = folder / f"{name}{Path(hint.file).suffix}"
    return download(hub_url(hint.repo, hint.file), target, hint.size, hint.sha256, progress)
