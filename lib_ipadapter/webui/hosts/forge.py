"""Forge and reForge as hosts: the UNet behind ``forge_objects``, UNet calls that label their rows, memory by the host's
own manager."""

from __future__ import annotations

import contextlib
import html
import importlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from modules import paths, sd_models, shared
from torch import Tensor, nn

from ...attention.rows import LabelledRows
from ...attention.session import COND, UNCOND
from ...errors import UnsupportedModel
from ..stack import callers, is_in, variable
from .base import Coming, StepPlan
from .webui import WebUI, header

# Where the memory manager is: Forge, reForge and classic
_MANAGERS = ("backend.memory_management", "ldm_patched.modules.model_management")
_BESIDE = 512 << 20  # bytes, for what a ControlNet computes
_ROOM = 4 << 30  # bytes; the largest known encoder in half precision, with what it computes


class Forge(WebUI):
    """``base.Host`` of the Forge family."""

    def encoder_folders(self) -> list[Path]:
        """Those of all hosts, and that of Forge's preprocessors."""
        given = getattr(shared.cmd_opts, "controlnet_preprocessor_models_dir", None)
        return [*super().encoder_folders(), Path(given or Path(paths.models_path) / "ControlNetPreprocessor")]

    # the model

    def unet(self) -> nn.Module:
        """Of the loaded model; clones of the patcher share it."""
        found = _unet_of(shared.sd_model)
        if found is None:
            raise UnsupportedModel("no model is loaded; choose a checkpoint of Stable Diffusion 1.x, 2.x or XL")
        return found

    def loaded_unet(self) -> nn.Module | None:
        """Before the first job a stand-in is there, which has no model."""
        return _unet_of(getattr(sd_models.model_data, "sd_model", None))

    def coming(self) -> Coming | None:
        """Forge notes what is chosen, and loads it when a job begins; reForge and classic load it at once."""
        data = sd_models.model_data
        info = (getattr(data, "forge_loading_parameters", None) or {}).get("checkpoint_info")
        loaded = getattr(getattr(data, "sd_model", None), "sd_checkpoint_info", None)
        if info is None or info.filename == getattr(loaded, "filename", None):
            return None
        return Coming(str(info.name_for_extra), Path(info.filename), partial(header, Path(info.filename)))

    def check(self, p: Any, sampling: bool = True) -> None:
        """Nothing stands in for the UNet; a model without cross-attention is refused by its layers."""

    def loras(self, module: str) -> Iterator[tuple[str, Tensor]]:
        """By the patches that the host has for the weight."""
        unet = getattr(getattr(shared.sd_model, "forge_objects", None), "unet", None)
        for name, patch in _patches(unet, f"diffusion_model.{module}.weight"):
            # (strength, what, ...): ("lora", (up, down, ...)), in reForge an object with the same weights
            weights = getattr(patch[1], "weights", None) or patch[1][-1]
            if isinstance(weights, list | tuple) and isinstance(weights[0], Tensor):
                yield name, weights[0]

    # the rows of a step

    def rows(self) -> LabelledRows:
        """Each UNet call says which of its parts are cond and uncond."""
        return LabelledRows()

    def plan(self, p: Any, params: Any) -> StepPlan:
        """A part of a call is the whole batch. With AND there is a cond part for each of the prompts that it joins,
        cut to those that every picture has (compile_weighted_conditions)."""
        batch = params.x.shape[0]
        joined = min((len(prompts) for prompts in p.get_conds()[0].batch), default=1)
        pictures = [*range(batch)] * (joined + 1)
        return StepPlan((COND,) * (joined * batch) + (UNCOND,) * batch, lambda needed: pictures)

    # the job's result

    def surface(self, error: BaseException) -> None:
        """reForge's main thread drops what a job raises, and the page fails on the result that is missing. The task is
        on the call stack; its result becomes the error, as the WebUI itself would show it."""
        frame = next((one for one in callers() if is_in(one, "modules_forge.main_thread", "work")), None)
        task = None if frame is None else variable(frame, "self")
        if task is not None and not hasattr(task, "exception"):  # Forge's keeps it
            text = html.escape(f"{type(error).__name__}: {error}")
            task.result = [None, "", "", f"<div class='error'>{text}</div>"]

    # memory

    def unload(self) -> None:
        """All models; the sampler loads what it needs."""
        _manager().unload_all_models()

    def device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        """The host's device; half precision where it computes in it."""
        manager = _manager()
        device = manager.get_torch_device()
        half = device.type == "cuda" and manager.should_use_fp16(device)
        return device, torch.float16 if half else torch.float32

    @contextlib.contextmanager
    def room(self) -> Iterator[bool]:
        """Models leave the device until the encoder has room; the sampler loads what it needs, so the encoder leaves
        afterwards."""
        manager = _manager()
        device = manager.get_torch_device()
        if device.type != "cpu":
            manager.free_memory(_ROOM, device)
        yield device.type != "cpu"

    def leaves(self) -> str:
        """Its manager does not know of what is not its own."""
        return "" if _manager().get_torch_device().type == "cpu" else "pass"

    def reserve(self, size: int) -> torch.device | None:
        """Its manager gives all that is free to the UNet: what runs beside it comes first. In a step (of a refiner) it
        would take the UNet away that samples."""
        if any(is_in(frame, "modules.sd_samplers_cfg_denoiser", "forward") for frame in callers()):
            return None
        manager = _manager()
        device: torch.device = manager.get_torch_device()
        if device.type == "cpu":
            return None
        manager.free_memory(size + _BESIDE, device)
        return device


def _unet_of(model: Any) -> nn.Module | None:
    objects = getattr(model, "forge_objects", None)
    found = getattr(getattr(getattr(objects, "unet", None), "model", None), "diffusion_model", None)
    return found if isinstance(found, nn.Module) else None


def _patches(patcher: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The LoRA's name and its patch of a weight. Forge keeps patches by file; reForge and classic all together, and
    then the name is those of all LoRAs that are loaded."""
    if hasattr(patcher, "lora_patches"):
        for identity, patches in patcher.lora_patches.items():
            yield from ((Path(identity[0]).stem, patch) for patch in patches.get(key, ()))
        return
    names = [str(network.name) for network in getattr(sys.modules.get("networks"), "loaded_networks", ())]
    yield from ((", ".join(names), patch) for patch in getattr(patcher, "patches", {}).get(key, ()))


def _manager() -> Any:
    for name in _MANAGERS:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise UnsupportedModel(f"none of {', '.join(_MANAGERS)} is there, so this WebUI's memory cannot be managed")
