"""What trainings and evaluations have in common here: who may start them, base models, and how a process is started."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import IPAdapterError, TrainingError, UnitError
from ...files.tensors import open_tensors
from ...runs.launch import Launch
from ...standalone.model import LDM
from ...standalone.text import TEXT_TOWERS
from ..models import Models

SDXL = "conditioner.embedders."  # how keys of an SDXL checkpoint begin
_CONTEXT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


class Place:
    """One for each page and for the routes; the runs are the same. open_to_all: whether people whom the WebUI asks for
    no password reach it over the network: they start nothing here, for what is started reads any folder."""

    def __init__(self, models: Models, open_to_all: Callable[[], bool]) -> None:
        self.models, self._open = models, open_to_all

    def allow(self) -> None:
        """Raises TrainingError where a stranger could ask."""
        if self._open():
            raise TrainingError(
                "other computers reach this WebUI (--listen, --share) and nobody is asked for a password, so trainings "
                "and evaluations are off; start it with --gradio-auth USER:PASSWORD (for the API --api-auth)"
            )

    def checkpoints(self) -> dict[str, Path]:
        """Base models by name, the loaded one first."""
        return self.models.host.checkpoints()

    def yaml_of(self, base: Path) -> str:
        """The yaml of a checkpoint of SD1.x or SD2.x that has none beside it: as the WebUI loaded it, or SD1.x's."""
        if os.path.isfile(base.with_suffix(".yaml")):
            return ""
        shapes = shapes_of(base)
        if any(key.startswith(SDXL) for key in shapes):
            return ""
        return self.models.host.checkpoint_config(base, shapes.get(_CONTEXT, (0, 0))[-1])

    def launch(self, unload: Any, file: bool = True) -> Launch:
        """How a process is started now. unload: the WebUI's model leaves the device before it starts, until the next
        job; file: whether a checkpoint in one file is opened. Raises UnitError, TrainingError."""
        self.allow()
        if file:
            require_ldm()
        if not isinstance(unload, bool):
            raise UnitError("unload", unload, "true or false")
        before = self.models.unload if unload else (lambda: None)
        towers = os.pathsep.join(map(str, self.models.host.text_tower_folders()))
        variables = {**self.models.host.training_variables(), TEXT_TOWERS: towers}
        return Launch(packages=_packages(), variables=variables, before=before)


def require_ldm() -> None:
    """Raises TrainingError where the WebUI brings no ldm, by which a checkpoint in one file is built, as Forge."""
    if not _packages():
        raise TrainingError(
            "this WebUI has no ldm, which a checkpoint is trained and measured with; run: "
            f"{sys.executable} -m pip install --no-deps {LDM}"
        )


def shapes_of(path: Path) -> dict[str, Any]:
    """Shapes of a checkpoint's tensors by key; {} for a pickle, which takes long to open, and what cannot be read."""
    if path.suffix.lower() != ".safetensors":
        return {}
    try:
        return dict(open_tensors(path).shapes)
    except (IPAdapterError, OSError):
        return {}


def family(path: Path) -> str:
    """Of a checkpoint: sdxl, or sd15 for all others."""
    return "sdxl" if any(key.startswith(SDXL) for key in shapes_of(path)) else "sd15"


def _packages() -> list[Path]:
    """Folders of what the commands import and the WebUI has outside its Python's own packages."""
    try:
        spec = importlib.util.find_spec("ldm")
    except (ImportError, ValueError, AttributeError):
        return []
    return [Path(os.path.dirname(place)) for place in (spec.submodule_search_locations or [])] if spec else []
