"""Features on demand: one encoder in memory, on the device while it works."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from ..errors import EncoderError, FileError
from .catalog import Catalog
from .clip import Device, Features, ImageEncoder, NotFinite
from .recognise import Recognised, recognise
from .spec import EncoderSpec, Feature, Need

Room = Callable[[], AbstractContextManager[bool]]
Keep = Literal["device", "memory", "nothing"]  # where the encoder stays after encoding
KEEP: tuple[Keep, ...] = ("device", "memory", "nothing")


class EncoderPool:
    """At most one encoder in memory, used by one thread at a time. tell: told what takes time inside ``room``, and ""
    when it is over."""

    def __init__(self, tell: Callable[[str], None] = lambda text: None) -> None:
        self._tell = tell
        self._lock = threading.RLock()
        self._encoder: ImageEncoder | None = None
        self._key: Hashable = None
        self._room: _Room | None = None
        self._float32_only: set[Hashable] = set()  # files whose features are not finite in half precision

    def encode(
        self,
        path: Path,
        picture: Image.Image | Tensor | None,
        feature: Feature | None = None,
        device: Device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Features:
        """Features of ``picture``, its square or RGB values (``ImageEncoder.encode_values``), or with None the
        unconditional ones, by the encoder in ``path``. If they are not
        finite in half precision, they are computed in float32. Raises BrokenEncoder if they are not finite there
        either."""
        with self._lock:
            file = identity(path)
            if dtype != torch.float32 and file not in self._float32_only:
                with contextlib.suppress(NotFinite):
                    return _run(self.get(path, device, dtype), picture, feature)
                self._float32_only.add(file)
            return _run(self.get(path, device, torch.float32), picture, feature)

    def get(self, path: Path, device: Device = "cpu", dtype: torch.dtype = torch.float32) -> ImageEncoder:
        """The encoder in ``path`` on ``device``; another one is dropped first."""
        with self._lock:
            if self._room is not None:
                self._room.enter()
            key = (identity(path), recognise(path).spec, dtype)
            if self._encoder is None or self._key != key:
                self.release()
                if self._room is not None:
                    self._tell(f"loading the image encoder {path.name}")
                self._encoder, self._key = ImageEncoder.load(path, device, dtype), key
            if self._room is not None:
                self._tell("encoding the reference images")
            return self._encoder.to(device)

    @contextlib.contextmanager
    def room(self, room: Room, keep: Keep) -> Iterator[None]:
        """Enters ``room``, which yields whether the encoder has to leave the device, before the first picture that is
        encoded inside, and not at all if none is. Afterwards the encoder stays where ``keep`` says. May be nested: the
        outermost one counts."""
        if self._room is not None:
            yield
            return
        with contextlib.ExitStack() as stack:
            self._room = entered = _Room(room, stack)
            try:
                yield
            finally:
                self._room = None
                if entered.short is not None:
                    self._tell("")
                if keep == "nothing":
                    self.release()
                elif keep == "memory" or entered.short:
                    self.offload()

    @property
    def loaded(self) -> ImageEncoder | None:
        """The encoder in memory, if any."""
        return self._encoder

    def offload(self) -> None:
        """Moves the encoder off the accelerator."""
        with self._lock:
            if self._encoder is not None:
                self._encoder.to("cpu")

    def release(self) -> None:
        """Drops the encoder."""
        with self._lock:
            self._encoder, self._key = None, None


class _Room:
    """A context that is entered when it is first needed."""

    def __init__(self, room: Room, stack: contextlib.ExitStack) -> None:
        self._room, self._stack = room, stack
        self.short: bool | None = None  # whether the encoder has to leave the device; None: not entered

    def enter(self) -> None:
        if self.short is None:
            self.short = self._stack.enter_context(self._room())


def _run(encoder: ImageEncoder, picture: Image.Image | Tensor | None, feature: Feature | None) -> Features:
    if isinstance(picture, Tensor):
        return encoder.encode_values(picture, feature)
    return encoder.unconditional(feature) if picture is None else encoder.encode(picture, feature)


class EncoderSource:
    """``prompts.encode.FeatureSource`` by encoder files in folders. An encoder is looked up once: make one source per
    job."""

    def __init__(
        self,
        folders: Catalog | Sequence[Path] | Callable[[], Sequence[Path]],
        pool: EncoderPool | None = None,
        device: Device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.catalog = folders if isinstance(folders, Catalog) else Catalog(folders)
        self.pool = pool if pool is not None else EncoderPool()
        self.device, self.dtype = device, dtype
        self._found: dict[Need, Recognised] = {}

    def encode(self, square: Image.Image, need: Need) -> Tensor:
        """The feature of an RGB square of ``side`` pixels. Raises EncoderError."""
        return self._encode(square, need)

    def unconditional(self, need: Need) -> Tensor:
        """The same feature of no picture. The pooled one is zeros, for which no encoder is loaded."""
        if need.feature == "pooled":
            return torch.zeros(1, need.width)
        return self._encode(None, need)

    def levels(self, values: Tensor, need: Need) -> dict[str, Tensor]:
        """The features pooled and levels of RGB values [1, 3, H, W] in 0..1. Raises EncoderError."""
        found = self.pool.encode(self.find(need).path, values, "levels", self.device, self.dtype)
        return {"pooled": found.pooled, "levels": found.levels}

    def side(self, need: Need) -> int:
        """Side of the encoder's square, pixels."""
        return self.spec(need).image_size

    def identity(self, need: Need) -> Hashable:
        """Equal squares have equal features under an equal identity: file, tower, feature, dtype and kind of device."""
        found = self.find(need)
        return (*identity(found.path), found.spec, need.feature, self.dtype, torch.device(self.device).type)

    def named(self, need: Need) -> Need:
        """The need with its encoder's name, where the folders tell it."""
        try:
            return replace(need, encoder=self.catalog.name_of(need))
        except EncoderError:
            return need

    def spec(self, need: Need) -> EncoderSpec:
        """The encoder's. Raises EncoderError."""
        spec = self.find(need).spec
        assert spec is not None  # Catalog.find raises for others
        return spec

    def check(self, need: Need) -> None:
        """Raises EncoderMissing, BrokenEncoder."""
        self.find(need)

    def find(self, need: Need) -> Recognised:
        """The encoder's file. Raises EncoderMissing, BrokenEncoder."""
        if need not in self._found:
            self._found[need] = self._find(need)
        return self._found[need]

    def _find(self, need: Need) -> Recognised:
        return self.catalog.find(self.catalog.name_of(need))

    def _encode(self, square: Image.Image | None, need: Need) -> Tensor:
        features = self.pool.encode(self.find(need).path, square, need.feature, self.device, self.dtype)
        return features.of(need.feature)


class LoadedSource:
    """``prompts.encode.FeatureSource`` by one encoder that stays loaded."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.encoder = encoder

    def encode(self, square: Image.Image, need: Need) -> Tensor:
        """The feature of an RGB square of ``side`` pixels. Raises EncoderError."""
        return self.encoder.encode(square, need.feature).of(need.feature)

    def unconditional(self, need: Need) -> Tensor:
        """The same feature of no picture."""
        return self.encoder.unconditional(need.feature).of(need.feature)

    def levels(self, values: Tensor, need: Need) -> dict[str, Tensor]:
        """The features pooled and levels of RGB values [1, 3, H, W] in 0..1. Raises EncoderError."""
        found = self.encoder.encode_values(values, "levels")
        return {"pooled": found.pooled, "levels": found.levels}

    def side(self, need: Need) -> int:
        """Side of the encoder's square, pixels."""
        return self.encoder.spec.image_size

    def check(self, need: Need) -> None:
        """It is there."""

    def identity(self, need: Need) -> Hashable:
        """Of this encoder, in this process."""
        return id(self.encoder), need.feature

    def named(self, need: Need) -> Need:
        """With this encoder's name."""
        return replace(need, encoder=self.encoder.spec.name)


def identity(path: Path) -> tuple[str, int, int]:
    """Path, time (ns) and size (bytes) of a file: another file in its place is another encoder."""
    try:
        stat = path.stat()
    except OSError as error:
        raise FileError(path, f"cannot be opened: {error.strerror}; press refresh") from None
    return str(path), stat.st_mtime_ns, stat.st_size
