"""The ControlNets on the user's disk: found by their keys under any name, loaded when needed, and moved away."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..cache import LRU
from ..encoders.state import assign
from ..errors import BrokenControl, ControlMissing, FileError, UnsafeFile
from ..files.disk import short_hash
from ..files.library import Version, mentions, utf8_name, versions_below
from ..files.tensors import TensorFile, open_tensors
from .layout import ControlSpec, control_spec, is_control, other_kind, standard_keys
from .network import ControlNet

AUTO, NONE = "auto", "none"
_MARKS = (b"zero_convs", b"controlnet_down_blocks")
# InstantID's published file, by the WebUI's short hash: of 64 KiB at 1 MiB
_INSTANT_ID = ("c5c25a50",)
_NAMED = ("instantid", "instant_id", "instant-id")
_SHOWN = 8  # of the keys, or files, that a message lists
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Found:
    """A ControlNet's file. name: as the list has it; spec: None for one that cannot be used, as ``problem`` says."""

    name: str
    path: Path
    spec: ControlSpec | None
    problem: str = ""


class Loaded:
    """A ControlNet in memory, in the file's dtype, until it is put on a device. What becomes of the file meanwhile does
    not matter."""

    def __init__(self, path: Path) -> None:
        """Raises FileError."""
        self.path = path
        file, keys = _opened(path)
        shapes = {key: file.shapes[own] for key, own in keys.items()}
        try:
            self.spec = control_spec(shapes)
            with torch.device("meta"):
                self.network = ControlNet(shapes).eval().requires_grad_(False)
        except (KeyError, IndexError, ValueError) as error:
            raise BrokenControl(path, f"a ControlNet without {error}; download it again") from None
        _check(path, shapes, {key: tuple(value.shape) for key, value in self.network.state_dict().items()})
        if not self.network.fits_together(self.spec.context, self.spec.label):
            raise BrokenControl(path, "its layers do not fit together; download it again")
        self._state = {key: file.read(own) for key, own in keys.items()}
        self._place: tuple[torch.device, torch.dtype] | None = None
        self._finite = False  # known to be
        self.offload()

    @property
    def nbytes(self) -> int:
        """Of the file's tensors."""
        return sum(x.numel() * x.element_size() for x in self._state.values())

    @property
    def device(self) -> torch.device | None:
        """Where it was put; None: it is in RAM."""
        return None if self._place is None else self._place[0]

    def at(self, device: torch.device, dtype: torch.dtype) -> ControlNet:
        """The network there, in that dtype. Raises BrokenControl for NaN or infinite weights, which would make the
        whole picture so."""
        if self._place != (device, dtype):
            self._assign({key: self._checked(key, value.to(device)).to(dtype) for key, value in self._state.items()})
            self._finite = True
            self._place = device, dtype
        return self.network

    def early(self, device: torch.device) -> None:
        """Puts it there in the file's dtype, before the memory is given to others."""
        self.at(device, next(iter(self._state.values())).dtype)

    def offload(self) -> None:
        """Off the device."""
        self._assign(self._state)
        self._place = None

    def _checked(self, key: str, value: Tensor) -> Tensor:
        # A sum in float32 is NaN or infinite when any term is; isfinite has no fp8.
        if not self._finite and not value.float().sum().isfinite():
            raise BrokenControl(self.path, f"NaN or infinite weights in {key}; download it again")
        return value

    def _assign(self, state: Mapping[str, Tensor]) -> None:
        assign(self.network, state)
        self.network.requires_grad_(False)


class ControlNets:
    """Those in folders, and those that are loaded.

    folders: to search; stays: where one is kept after a pass, "device", "memory" or "nothing"; leaves: when memory is
    so short that one has to leave the device, after each "call", after the "pass", or ""; reserve: makes room on the
    device for so many bytes before sampling, and says which device if the network is to be put there then; tell: told
    what takes time, and "" when it is over.
    """

    def __init__(
        self,
        folders: Callable[[], Sequence[Path]],
        stays: Callable[[], str] = lambda: "memory",
        leaves: Callable[[], str] = lambda: "",
        reserve: Callable[[int], torch.device | None] = lambda size: None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.tell = tell
        self.folders, self.stays, self.leaves, self.reserve = folders, stays, leaves, reserve
        self._seen: LRU[Found | None] = LRU(lambda: 4096)
        self._loaded: LRU[Loaded] = LRU(lambda: 2)

    def names(self) -> list[str]:
        """Those that can be used."""
        return list(dict.fromkeys(found.name for found in self.all() if found.spec))

    def all(self) -> list[Found]:
        """The files with a ControlNet's keys, also those that cannot be used, in the order of the folders. Several may
        have one name: that of the hub's files is the same for all models."""
        known: dict[str, Found] = {}
        for name, version in self._files():
            found = None
            with contextlib.suppress(FileError):  # that may pass: a program that copies or checks it has it open
                found = self._seen.get((name, version), lambda name=name, path=version[0]: _look(name, path))  # type: ignore[misc]
            if found is not None:
                known.setdefault(os.path.realpath(found.path), found)  # folders may lie in each other
        return list(known.values())

    def find(self, name: str, context: int) -> Found:
        """The file of that name, the first folder's; of AUTO, InstantID's for tokens of this width. Raises
        ControlMissing, FileError."""
        every = self.all()
        if name.lower() != AUTO:
            return self._named(name, every)
        fitting = [found for found in every if found.spec and found.spec.context == context]
        if published := [found for found in fitting if short_hash(found.path) in _INSTANT_ID]:
            return published[0]
        named = [found for found in fitting if any(part in found.name.lower() for part in _NAMED)]
        if named and len({found.name for found in named}) == 1:
            return named[0]
        if len(fitting) == 1:
            return fitting[0]
        raise self._none(fitting, [found for found in every if found.problem], context)

    def is_instant_id(self, found: Found) -> bool:
        """Whether its hash, or its name says so."""
        named = any(part in found.name.lower() for part in _NAMED)
        return named or short_hash(found.path) in _INSTANT_ID

    def load(self, path: Path) -> Loaded:
        """The file's network, read once. One whose file was replaced or removed since is dropped first: each takes
        gigabytes. Raises FileError."""
        self._loaded.drop(_is_stale)
        return self._loaded.get(_version(path), lambda: self._read(path))

    def _read(self, path: Path) -> Loaded:
        self.tell(f"loading the ControlNet {path.name}")
        try:
            return Loaded(path)
        finally:
            self.tell("")

    def leave(self, loaded: Loaded) -> None:
        """A pass is over: it goes where the setting says."""
        stays = self.stays()
        if stays != "device" or self.leaves():
            loaded.offload()
        if stays == "nothing":
            self.release()

    def release(self) -> None:
        """Drops what is loaded."""
        self._loaded.clear()

    def _files(self) -> Iterator[tuple[str, Version]]:
        for folder in self.folders():
            for version in versions_below(folder):
                yield utf8_name(version[0].relative_to(folder).with_suffix("").as_posix()), version

    def _named(self, name: str, every: Sequence[Found]) -> Found:
        wanted = name.strip().replace("\\", "/")
        for same in (str, str.lower):
            for found in every:
                if same(wanted) in (same(found.name), same(found.name + found.path.suffix)):
                    if found.problem:
                        raise BrokenControl(found.path, found.problem)
                    return found
        for stem, (path, *_) in self._files():
            if wanted.lower() in (stem.lower(), stem.lower() + path.suffix):
                _opened(path)  # says what it is: a web page, cut off, another kind of file
        usable = ", ".join(found.name for found in every if found.spec) or "none"
        raise ControlMissing(
            f"control_model: no ControlNet named {name!r}; there are: {usable}. Put the file into one of "
            f"{self._where()}, or set ControlNet (control_model) to auto or none",
            field="control_model", value=name, expected=[found.name for found in every if found.spec],
        )  # fmt: skip

    def _none(self, fitting: Sequence[Found], broken: Sequence[Found], context: int) -> ControlMissing:
        if fitting:
            names = [found.name for found in fitting]
            return ControlMissing(
                f"InstantID's ControlNet cannot be told among {', '.join(names[:_SHOWN])}, by name or hash: choose it "
                "under ControlNet (control_model), or set that to none for the adapter alone",
                field="control_model", value=AUTO, expected=names,
            )  # fmt: skip
        seen = "; ".join(f"{found.name}: {found.problem}" for found in broken[:_SHOWN])
        return ControlMissing(
            "InstantID's ControlNet is missing: no file with a ControlNet's keys and tokens "
            f"{context} wide was found{f' that can be used ({seen})' if seen else ''}. Download "
            "ControlNetModel/diffusion_pytorch_model.safetensors of the hub's "
            f"InstantX/InstantID and put it, under any name, into one of {self._where()}; or set ControlNet "
            "(control_model) to none for the adapter alone",
            field="control_model", value=AUTO, expected="InstantID's ControlNet",
        )  # fmt: skip

    def _where(self) -> str:
        """Those that are there: an extension's, made by hand, would look like an extension."""
        folders = self.folders()
        return ", ".join(dict.fromkeys(map(str, [one for one in folders if one.is_dir()] or folders)))


def _look(name: str, path: Path) -> Found | None:
    """None for a file of another kind. Raises FileError for one that cannot be opened."""
    if not mentions(path, _MARKS):
        return None
    try:
        file, keys = _opened(path)
        return Found(name, path, control_spec({key: file.shapes[own] for key, own in keys.items()}))
    except (UnsafeFile, BrokenControl) as error:
        return Found(name, path, None, str(error).removeprefix(f"{path.name}: "))
    except (KeyError, IndexError) as error:
        return Found(name, path, None, f"a ControlNet without {error}; download it again")


def _opened(path: Path) -> tuple[TensorFile, dict[str, str]]:
    """The file, and its own key of each standard one. Raises FileError."""
    file = open_tensors(path)
    if not is_control(file.shapes):
        raise BrokenControl(path, "no ControlNet: it has neither zero_convs nor controlnet_down_blocks")
    if kind := other_kind(file.shapes):
        raise BrokenControl(path, f"{kind}; expected a plain ControlNet, such as InstantID's")
    keys = standard_keys(file.shapes)
    if wrong := [own for own in keys.values() if file.dtypes[own] not in _FLOATS]:
        raise BrokenControl(path, f"weights must be floating point, but {wrong[0]} is {file.dtypes[wrong[0]]}")
    return file, keys


def _check(path: Path, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises BrokenControl unless a file has these keys and shapes."""
    parts = {
        "missing": [key for key in expected if key not in shapes],
        "left over": [key for key in shapes if key not in expected],
        "of a wrong shape": [key for key in expected if key in shapes and shapes[key] != expected[key]],
    }
    said = [f"{len(keys)} {what} ({', '.join(keys[:_SHOWN])})" for what, keys in parts.items() if keys]
    if said:
        raise BrokenControl(path, f"not a whole ControlNet: keys {'; '.join(said)}. Download it again")


def _version(path: Path) -> Version:
    try:
        stat = path.stat()
    except OSError as error:
        raise FileError(path, f"cannot be opened: {error.strerror}; press refresh") from None
    return path, stat.st_mtime_ns, stat.st_size


def _is_stale(version: Version) -> bool:
    try:
        return _version(version[0]) != version
    except FileError:
        return True
