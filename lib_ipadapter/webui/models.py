"""Adapters and encoders on the user's disk: their names, what each file is, and what is cached of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..adapters import inspect as inspection
from ..adapters.adapter import Adapter
from ..adapters.file import open_adapter
from ..adapters.variant import VariantSpec, identify
from ..cache import LRU
from ..encoders import ENCODERS, EncoderPool, EncoderSource, FeatureCache, register_archs, register_configs
from ..encoders.fetch import download_encoder
from ..errors import EncoderMissing, IPAdapterError
from ..files.library import Library
from ..unit.presets import Presets
from . import settings
from .hosts import Host
from .log import logger
from .shelf import HostShelf


class Models:
    """One per process; survives "Reload UI". Nothing is read from disk before it is needed."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.library = Library()
        self.pool = EncoderPool()
        self._listed = False
        self._adapters: LRU[Adapter] = LRU(lambda: int(settings.get("ipadapter_cached_adapters")))
        self._features = FeatureCache(lambda: int(settings.get("ipadapter_cached_references")))
        self._specs: LRU[VariantSpec] = LRU(lambda: 256)

    # names and files

    def register_archs(self) -> None:
        """Registers custom text towers, before the WebUI loads a model that has one. Never raises."""
        try:
            for name in register_archs(self.host.text_tower_folders()):
                logger.info("registered the text tower %s", name)
        except Exception as error:  # nothing here may keep the WebUI from starting
            logger.warning("could not register text towers: %s", error)

    def refresh(self) -> None:
        """Lists the adapter files again."""
        self.library.refresh(self.host.adapter_folders())
        self._listed = True

    def model_names(self) -> list[str]:
        """The adapters' names."""
        if not self._listed:
            self.refresh()
        return self.library.names()

    def find(self, model: str) -> Path:
        """The file of an adapter's name; a file added since the last listing is found too."""
        self.model_names()
        try:
            return self.library.find(model)
        except IPAdapterError:
            self.refresh()
            return self.library.find(model)

    def presets(self) -> Presets:
        """The saved presets."""
        return Presets(self.host.home() / "presets")

    def shelf(self) -> HostShelf:
        """Saved embeds and folders of pictures."""
        return HostShelf(self.host.home(), self)

    # what a file is

    def spec(self, path: Path) -> VariantSpec:
        """The adapter's spec; its header is read once."""
        register_configs(self.host.encoder_folders())

        def read() -> VariantSpec:
            file = open_adapter(path)
            return identify(file.shapes, path, file.encoder)

        return self._specs.get(_version_of(path), read)

    def inspect(self, model: str) -> dict[str, Any]:
        """What ``inspect --json`` prints for one file, without its folder."""
        register_configs(self.host.encoder_folders())
        return inspection.report(self.find(model))

    def describe(self, model: str) -> dict[str, Any]:
        """What the panel shows next to the model; never raises IPAdapterError."""
        try:
            spec = self.spec(self.find(model))
            found, error = self._encoder_found(spec), None
        except IPAdapterError as failure:
            return {"title": model, "base": "", "encoder": "", "encoder_found": False, "error": str(failure),
                    "text": str(failure)}  # fmt: skip
        state = "found" if found else "missing"
        text = f"{spec.label} · {spec.base} · {spec.tokens} tokens · encoder {spec.encoder}: {state}"
        return {"title": spec.label, "base": spec.base, "encoder": spec.encoder, "encoder_found": found,
                "error": error, "text": text}  # fmt: skip

    def _encoder_found(self, spec: VariantSpec) -> bool:
        try:
            self.source().path(spec)
        except EncoderMissing:
            return False
        return True

    def encoder_size(self, model: str) -> int:
        """Side in pixels of the encoder's input; 224 when the encoder is not known."""
        try:
            return ENCODERS[self.spec(self.find(model)).encoder].image_size
        except (IPAdapterError, KeyError):
            return 224

    def download_encoder(self, name: str, progress: Callable[[int, int | None], None]) -> Path:
        """Downloads an encoder."""
        return download_encoder(name, self.host.encoder_folders()[0], progress)

    # loaded adapters and features

    def adapter(self, model: str) -> Adapter:
        """The adapter of that name, loaded."""
        path = self.find(model)
        register_configs(self.host.encoder_folders())
        return self._adapters.get(_version_of(path), lambda: Adapter.load(path))

    def source(self) -> EncoderSource:
        """Encodes pictures, on the device and in the dtype of the moment."""
        device, dtype = self.host.device_and_dtype()
        return EncoderSource(self.host.encoder_folders, self.pool, self._features, device, dtype)

    @contextlib.contextmanager
    def encoding(self) -> Iterator[None]:
        """Around encoding: makes room on the device before, and frees it afterwards."""
        with self.host.room() as short:
            try:
                yield
            finally:
                if not settings.get("ipadapter_keep_encoder"):
                    self.pool.release()
                elif short:
                    self.pool.offload()

    def release(self) -> None:
        """Frees what is cached."""
        self.pool.release()
        self._adapters.clear()
        self._features.clear()


def _version_of(path: Path) -> tuple[str, float, int]:
    stat = path.stat()
    return str(path), stat.st_mtime, stat.st_size
