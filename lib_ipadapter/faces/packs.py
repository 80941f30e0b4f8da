"""Which file is which face model, and where users have them.

A face adapter is trained on the embeddings of one recogniser; another one gives another person without any error. So a
recogniser is known by the hash of its file. A file with an unknown hash counts only if both its name and its graph say
what it is, and then it is marked.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import FaceModelError, FaceModelMissing, IPAdapterError
from .onnx_graph import Graph, read_graph
from .runtime import MAX_BYTES

DETECTOR = "detector"
# Recogniser: the name of its file, the pack that holds it, and the file's SHA-256
RECOGNISERS = {
    "buffalo_l": ("w600k_r50.onnx", "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43"),
    "antelopev2": ("glintr100.onnx", "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf"),
}
# One file under two names, in either pack
DETECTOR_NAMES = ("det_10g.onnx", "scrfd_10g_bnkps.onnx")
DETECTOR_HASH = "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91"
_KNOWN = {DETECTOR_HASH: DETECTOR, **{digest: name for name, (_, digest) in RECOGNISERS.items()}}
_NAMES = {
    **dict.fromkeys(DETECTOR_NAMES, DETECTOR),
    **{file: name for name, (file, _) in RECOGNISERS.items()},
}
_DEPTH = 3  # folders below a searched one: models/PACK, or models/PACK/PACK as antelopev2's archive unpacks
# What zipfile and its decompressors raise of damaged archives, beside OSError
_UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error, KeyError, ValueError,
               RuntimeError, OverflowError)  # fmt: skip
LICENCE = "research and non-commercial use only (InsightFace's terms for its models)"


def own_folder() -> Path:
    """InsightFace's, in the user's home. A user without one (a container's) has no such folder, and no error."""
    return Path(os.path.expanduser("~"), ".insightface")


@dataclass(frozen=True)
class ModelFile:
    """An ONNX file on the disk, or ``member`` of a zip archive. role: DETECTOR or a name of RECOGNISERS; exact: its
    hash is that of the published file."""

    path: Path
    role: str
    exact: bool
    member: str = ""

    @property
    def label(self) -> str:
        """For messages: the file's name, and the archive's."""
        return f"{self.member.rpartition('/')[2]} in {self.path.name}" if self.member else self.path.name

    def read(self) -> bytes:
        """The file's bytes. Raises FaceModelError."""
        try:
            if not self.member:
                return _read(self.path)
            with zipfile.ZipFile(self.path) as archive:
                return _read_member(archive, archive.getinfo(self.member))
        except (OSError, *_UNREADABLE) as error:
            raise FaceModelError(f"{self.label}: cannot be read ({error})", file=self.label) from None


class FacePacks:
    """The face models in the folders that ``folders`` gives, which need not exist. The first of a role wins; files with
    a published hash come before others."""

    def __init__(self, folders: Callable[[], Sequence[Path]]) -> None:
        self._folders = folders

    def folders(self) -> Sequence[Path]:
        """Those that are searched."""
        return self._folders()

    def find(self, role: str) -> ModelFile:
        """The detector, or the recogniser of that name. Raises FaceModelMissing, which says what was found where."""
        found = list(self.files())
        folders = self._folders()
        fitting = [file for file in found if file.role == role]
        if fitting:
            return next((file for file in fitting if file.exact), fitting[0])
        names = DETECTOR_NAMES if role == DETECTOR else (RECOGNISERS[role][0],)
        packs = tuple(RECOGNISERS) if role == DETECTOR else (role,)
        seen = ", ".join(file.label for file in found) or "none"
        wanted = {*names, *(f"{pack}.zip" for pack in packs)}
        paths = [path for folder in folders for path in _files_below(Path(folder)) if path.name.lower() in wanted]
        useless = dict.fromkeys(path.name for path in paths if all(path != file.path for file in found))
        if useless:
            seen += f"; {', '.join(useless)} is there, but cut off, damaged or another file: download it again"
        raise FaceModelMissing(
            f"the face model {' or '.join(names)} (of the pack {' or '.join(packs)}) was not found. Put "
            f"{packs[0]}.zip, or its files, into {folders[0] if folders else 'models/insightface'}. Searched: "
            f"{', '.join(map(str, folders))}; face models there: {seen}. Licence of these models: {LICENCE}",
            role=role,
            folders=[str(folder) for folder in folders],
        )

    def files(self) -> Iterator[ModelFile]:
        """Every face model, in the order of the folders."""
        for folder in self._folders():
            for path in _files_below(Path(folder)):
                yield from _identified(path)


def _files_below(folder: Path) -> list[Path]:
    """ONNX files, and archives named like a pack, at most _DEPTH folders down; links are followed."""
    found: list[Path] = []
    for root, below, names in os.walk(folder, followlinks=True):
        if len(Path(root).relative_to(folder).parts) >= _DEPTH:
            below.clear()
        archives = {f"{pack}.zip" for pack in RECOGNISERS}
        found += [Path(root, n) for n in sorted(names) if n.lower().endswith(".onnx") or n.lower() in archives]
    return found


def _identified(path: Path) -> tuple[ModelFile, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    if not stat.S_ISREG(status.st_mode):
        return ()
    try:
        return _identified_once(path, status.st_mtime_ns, status.st_size)
    except OSError:  # that may pass: a program that copies or checks it has it open
        return ()


@lru_cache(maxsize=8192)  # a few hundred bytes each; fewer than there are files, and each look reads them all
def _identified_once(path: Path, _time: int, _size: int) -> tuple[ModelFile, ...]:
    """What one version of a file is: hashing 260 MB takes a second, so it is done once. Raises OSError."""
    try:
        if path.suffix.lower() == ".onnx":
            role, exact = _role(path.name, _read(path))
            return (ModelFile(path, role, exact),) if role else ()
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if one.filename.rpartition("/")[2] in _NAMES]
            roles = [
                (one.filename, _role(one.filename.rpartition("/")[2], _read_member(archive, one))) for one in members
            ]
    except (*_UNREADABLE, IPAdapterError):
        return ()
    return tuple(ModelFile(path, role, exact, member) for member, (role, exact) in roles if role)


def _role(name: str, content: bytes) -> tuple[str, bool]:
    """(role, whether the hash is a published one); ("", False) for another file."""
    known = _KNOWN.get(hashlib.sha256(content).hexdigest())
    if known:
        return known, True
    named = _NAMES.get(name.lower(), "")
    return (named, False) if named and _fits(named, read_graph(content, name)) else ("", False)


def _fits(role: str, graph: Graph) -> bool:
    if len(graph.inputs) != 1:
        return False
    if role == DETECTOR:
        return graph.outputs == 9
    return graph.outputs == 1 and graph.inputs[0][-2:] == (112, 112)


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{size >> 20} MB, expected at most {MAX_BYTES >> 20}")
    return path.read_bytes()


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Bounded by bytes that are really read: an archive may lie about sizes."""
    with archive.open(member) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES >> 20} MB unpacked")
    return content
