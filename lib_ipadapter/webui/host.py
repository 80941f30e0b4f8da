"""The WebUI as the rest of this package sees it: folders, options, device, the model, caches."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from modules import devices, lowvram, paths, sd_unet, shared
from torch import nn

from ..adapters import inspect as inspection
from ..adapters.adapter import Adapter
from ..adapters.file import open_adapter
from ..adapters.variant import VariantSpec, identify
from ..cache import LRU
from ..encoders import ENCODERS, EncoderPool, EncoderSource, FeatureCache, register_archs, register_configs
from ..errors import EncoderMissing, IPAdapterError, UnsupportedModel
from ..files.download import download_encoder
from ..files.library import Folder, Library
from ..unit.presets import Presets
from . import settings
from .shelf import HostShelf

logger = logging.getLogger("ip-adapter")
logger.propagate = False
if not logger.handlers:
    _handler = logging.StreamHandler(sys.stderr)
    _handler.setFormatter(logging.Formatter("IP-Adapter: %(message)s"))
    logger.addHandler(_handler)
    logger.setLevel(logging.INFO)

ENCODER_FOLDERS = ("clip_vision", "image_encoder", "ipadapter")


class Host:
    """One per process; survives "Reload UI". Nothing is read from disk before it is needed."""

    def __init__(self) -> None:
        self.library = Library()
        self.pool = EncoderPool()
        self._listed = False
        self._adapters: LRU[Adapter] = LRU(lambda: int(settings.get("ipadapter_cached_adapters")))
        self._features = FeatureCache(lambda: int(settings.get("ipadapter_cached_references")))
        self._specs: LRU[VariantSpec] = LRU(lambda: 256)

    # folders and files

    def register_archs(self) -> None:
        """Text towers of people's own, before the WebUI loads a model that has one. Never raises."""
        folders = [*_encoder_folders(), Path(paths.models_path) / "Stable-diffusion"]
        if shared.cmd_opts.ckpt_dir:
            folders.append(Path(shared.cmd_opts.ckpt_dir))
        try:
            for name in register_archs(folders):
                logger.info("registered the text tower %s", name)
        except Exception as error:  # nothing here may keep the WebUI from starting
            logger.warning("could not register text towers: %s", error)

    def refresh(self) -> None:
        """Lists the adapter files again."""
        self.library.refresh(_adapter_folders())
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

    def spec(self, path: Path) -> VariantSpec:
        """What kind of adapter the file holds; its header is read once."""
        register_configs(_encoder_folders())

        def look() -> VariantSpec:
            file = open_adapter(path)
            return identify(file.shapes, path, file.encoder)

        return self._specs.get(_version_of(path), look)

    def inspect(self, model: str) -> dict[str, Any]:
        """What ``inspect --json`` prints for one file, without its folder."""
        register_configs(_encoder_folders())
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
        """Side in pixels of the square that the model's encoder sees; 224 when that is not known."""
        try:
            return ENCODERS[self.spec(self.find(model)).encoder].image_size
        except (IPAdapterError, KeyError):
            return 224

    def allow_download(self) -> bool:
        """Whether the panel offers downloads."""
        return bool(settings.get("ipadapter_allow_download"))

    def download_encoder(self, name: str, progress: Callable[[int, int | None], None]) -> Path:
        """Fetches an encoder into models/clip_vision."""
        return download_encoder(name, Path(paths.models_path) / "clip_vision", progress)

    def unit_count(self) -> int:
        """Units in the panel."""
        return int(settings.get("ipadapter_units"))

    def default_fit(self) -> str:
        """The panel's default fit."""
        return str(settings.get("ipadapter_default_fit"))

    def pastes_inpainted(self) -> bool:
        """Whether what is inpainted is put back into its picture."""
        return bool(shared.opts.overlay_inpaint)

    def writes_infotext(self) -> bool:
        """Whether pictures carry their infotext."""
        return bool(shared.opts.enable_pnginfo)

    def report(self, message: str) -> None:
        """Logs an error that was caught, with its traceback."""
        logger.exception(message)

    def font(self, size: int) -> Any:
        """The WebUI's own, for captions."""
        from modules.images import get_font

        return get_font(size)

    # the model at hand

    def unet(self) -> nn.Module:
        """The UNet that samples. Raises UnsupportedModel."""
        if getattr(shared.sd_model, "is_sd3", False):
            raise UnsupportedModel(
                "Stable Diffusion 3 has no cross-attention that an IP-Adapter could act in; load a checkpoint of "
                "Stable Diffusion 1.x, 2.x or XL",
                value="SD3",
            )
        if sd_unet.current_unet is not None:
            label = sd_unet.current_unet.option.label
            raise UnsupportedModel(
                f"the compiled UNet {label!r} cannot be reached by an image prompt; set SD Unet to None in Settings",
                value=label,
            )
        unet: nn.Module = shared.sd_model.model.diffusion_model
        return unet

    def is_refiner(self, p: Any) -> bool:
        """Whether the model at hand is the job's refiner."""
        info = getattr(p, "refiner_checkpoint_info", None)
        return info is not None and shared.sd_model.sd_checkpoint_info == info

    def presets(self) -> Presets:
        """The named units, beside the adapters."""
        return Presets(Path(paths.models_path) / "ipadapter" / "presets")

    def shelf(self) -> HostShelf:
        """Saved embeds and folders of pictures, beside the adapters."""
        return HostShelf(Path(paths.models_path) / "ipadapter", self)

    # features, for features.FeatureSource

    def adapter(self, model: str) -> Adapter:
        """The adapter of that name, open."""
        path = self.find(model)
        register_configs(_encoder_folders())
        return self._adapters.get(_version_of(path), lambda: Adapter.load(path))

    def source(self) -> EncoderSource:
        """Where ``prepare`` gets features, on the device and in the dtype of the moment."""
        device = devices.get_device_for("ipadapter")
        half = device.type == "cuda" and not shared.cmd_opts.no_half
        dtype = torch.float16 if half else torch.float32
        return EncoderSource(_encoder_folders, self.pool, self._features, device, dtype)

    @contextlib.contextmanager
    def encoding(self) -> Iterator[None]:
        """Around encoding: where memory is short the model makes room first, and the encoder afterwards;
        where that is wanted it leaves RAM too."""
        short = lowvram.is_enabled(shared.sd_model)
        if short:
            lowvram.send_everything_to_cpu()
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


def _adapter_folders() -> list[Folder]:
    models = Path(paths.models_path)
    own = [
        models / "ipadapter",
        getattr(shared.cmd_opts, "ipadapter_dir", None),
        *settings.folders("ipadapter_model_folders"),
    ]
    controlnet = [
        models / "ControlNet",
        Path(paths.extensions_dir) / "sd-webui-controlnet" / "models",
        shared.opts.data.get("control_net_models_path"),
        getattr(shared.cmd_opts, "controlnet_dir", None),
    ]
    return [Folder(Path(f)) for f in own if f] + [Folder(Path(f), shared=True) for f in controlnet if f]


def _encoder_folders() -> list[Path]:
    models = Path(paths.models_path)
    downloads = shared.opts.data.get("control_net_modules_path") or getattr(
        shared.cmd_opts, "controlnet_annotator_models_path", None
    )
    annotator = Path(
        downloads or Path(paths.extensions_dir) / "sd-webui-controlnet" / "annotator" / "downloads"
    )
    own = [models / name for name in ENCODER_FOLDERS]
    return [*own, *map(Path, settings.folders("ipadapter_encoder_folders")), annotator / "clip_vision"]
