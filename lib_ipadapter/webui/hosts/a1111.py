"""AUTOMATIC1111's WebUI 1.10 as a host."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from modules import devices, lowvram, sd_models, sd_unet, shared
from torch import Tensor, nn

from ...attention.session import COND, UNCOND
from ...attention.traced import TracedRows
from ...errors import UnsupportedModel
from ..batch import pictures_of
from .base import StepPlan
from .webui import WebUI


class A1111(WebUI):
    """``base.Host`` of the WebUI."""

    _unloaded = False  # by a training that was to have the device alone

    # the model

    def unet(self) -> nn.Module:
        """That of the checkpoint, which a compiled one may stand in for."""
        unet: nn.Module = shared.sd_model.model.diffusion_model
        return unet

    def loaded_unet(self) -> nn.Module | None:
        """``shared.sd_model`` would load one."""
        model = sd_models.model_data.sd_model
        found = getattr(getattr(model, "model", None), "diffusion_model", None)
        return found if isinstance(found, nn.Module) else None

    def check(self, p: Any, sampling: bool = True) -> None:
        """SD Unet is applied after ``process``, so until then the one in use is the last job's."""
        if getattr(shared.sd_model, "is_sd3", False):
            raise UnsupportedModel(
                "Stable Diffusion 3 has no cross-attention that an IP-Adapter could act in; load a checkpoint of "
                "Stable Diffusion 1.x, 2.x or XL",
                value="SD3",
            )
        option = _unet_in_use() if sampling else sd_unet.get_unet_option()
        if option is not None:
            raise UnsupportedModel(
                f"the compiled UNet {option.label!r} cannot be reached by an image prompt; set SD Unet to None in "
                "Settings",
                value=option.label,
            )

    def unload(self) -> None:
        """To the CPU, as the button in its settings does."""
        if sd_models.model_data.sd_model is not None:
            sd_models.unload_model_weights(sd_models.model_data.sd_model)
            self._unloaded = True

    def load(self) -> None:
        """Back to where it was."""
        if self._unloaded and sd_models.model_data.sd_model is not None:
            sd_models.send_model_to_device(sd_models.model_data.sd_model)
        self._unloaded = False

    # the rows of a step

    def rows(self) -> TracedRows:
        """Told from what they hold: the WebUI labels nothing."""
        return TracedRows()

    def plan(self, p: Any, params: Any) -> StepPlan:
        """The cond rows, several for a picture whose prompts are joined by AND, then the uncond rows."""
        cond, rows = params.text_cond.shape[0], params.x.shape[0]
        return StepPlan((COND,) * cond + (UNCOND,) * (rows - cond), lambda needed: pictures_of(p, params, needed))

    def loras(self, module: str) -> Iterator[tuple[str, Tensor]]:
        """Of the built-in Lora extension, whose modules stand on the path of imports."""
        key = "diffusion_model_" + module.replace(".", "_")
        for network in getattr(sys.modules.get("networks"), "loaded_networks", ()):
            up = getattr(getattr(network.modules.get(key), "up_model", None), "weight", None)
            if isinstance(up, Tensor):
                yield str(network.name), up

    # memory

    def device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        """Half precision on CUDA, unless the WebUI was started without it."""
        device = devices.get_device_for("ipadapter")
        half = device.type == "cuda" and not shared.cmd_opts.no_half
        return device, torch.float16 if half else torch.float32

    @contextlib.contextmanager
    def room(self) -> Iterator[bool]:
        """With --lowvram and --medvram the model leaves the device first."""
        short = lowvram.is_enabled(shared.sd_model)
        if short:
            lowvram.send_everything_to_cpu()
        yield short

    def leaves(self) -> str:
        """With --lowvram only what runs is on the device; with --medvram the model makes room after sampling."""
        if shared.cmd_opts.lowvram:
            return "call"
        return "pass" if lowvram.is_enabled(shared.sd_model) else ""

    def reserve(self, size: int) -> torch.device | None:
        """The WebUI manages no memory while it samples."""
        return None


def _unet_in_use() -> Any:
    return None if sd_unet.current_unet is None else sd_unet.current_unet.option
