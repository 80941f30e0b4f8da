"""What the tab and the routes do: the runs below the folder of adapters, and what a training can be made of here."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...encoders.recognise import recognise
from ...errors import IPAdapterError, TrainingError, UnitError
from ...files.tensors import open_tensors
from ...runs import yaml_text
from ...runs.launch import Launch
from ...training.runs import look, recipe
from ...training.runs.recipe import Preset
from ...training.runs.runs import Runs
from ...training.runs.state import RunState
from ..models import Models

_LONGEST = 4096  # characters of a path
_SDXL = "conditioner.embedders."
_CONTEXT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
CURVE = 400  # points


class Desk:
    """One for each page and for the routes; the runs are the same. open_to_all: whether people whom the WebUI asks for
    no password reach it over the network: they start nothing here, for a training reads any folder."""

    def __init__(self, models: Models, open_to_all: Callable[[], bool]) -> None:
        self.models, self._open = models, open_to_all

    @property
    def runs(self) -> Runs:
        """All trainings."""
        return self.models.runs()

    def allow(self) -> None:
        """Raises TrainingError where a stranger could ask."""
        if self._open():
            raise TrainingError(
                "other computers reach this WebUI (--listen, --share) and nobody is asked for a password, so trainings "
                "are off; start it with --gradio-auth USER:PASSWORD (for the API --api-auth)"
            )

    # what there is

    def checkpoints(self) -> dict[str, Path]:
        """Base models by name, the loaded one first."""
        return self.models.host.checkpoints()

    def encoders(self) -> dict[str, Path]:
        """Image encoders by name, those that are in the folders."""
        found: dict[str, Path] = {}
        for entry in self.models.catalog.all():
            if entry.spec is not None:
                found.setdefault(entry.spec.name, entry.path)
        return found

    def variants(self, encoder: str) -> list[str]:
        """What can be trained with an encoder, by its name, and with the face models that are there."""
        path = self.encoders().get(encoder)
        return recipe.variants_for(None if path is None else recognise(path).spec, self._faces() is not None)

    def _faces(self) -> Path | None:
        """The folder with InsightFace's pack that is found first."""
        for folder in self.models.host.face_folders():
            if (folder / "buffalo_l").is_dir() or (folder / "models" / "buffalo_l").is_dir():
                return folder
        return None

    def preset(self, checkpoint: str) -> Preset:
        """The one for a base model on this machine's card."""
        path = self.checkpoints().get(checkpoint)
        return recipe.suggested("" if path is None else _family(path), _memory())

    def composed(self, preset: Any, checkpoint: str, data: str, encoder: str, variant: str) -> str:
        """The YAML text of what was chosen. Raises ConfigError."""
        return yaml_text.text_of(
            recipe.composed(recipe.preset_named(preset), self.chosen(checkpoint, data, encoder, variant))
        )

    def chosen(self, checkpoint: str, data: str, encoder: str, variant: str) -> dict[str, Any]:
        """The fields that the tab's controls stand for."""
        base = self.checkpoints().get(checkpoint)
        file = self.encoders().get(encoder)
        faces = self._faces() if str(variant).startswith("faceid") else None
        return {
            "base": "" if base is None else str(base),
            "base_config": "" if base is None else self._config_of(base),
            "data": str(data or "").strip(),
            "encoder": "" if file is None or variant == "faceid" else str(file),
            "face_models": "" if faces is None else str(faces),
            "variant": variant or "",
        }  # fmt: skip

    def _config_of(self, base: Path) -> str:
        """The yaml of a checkpoint of SD1.x or SD2.x that has none beside it: as the WebUI loaded it, or SD1.x's."""
        if base.with_suffix(".yaml").is_file():
            return ""
        shapes = _shapes(base)
        if any(key.startswith(_SDXL) for key in shapes):
            return ""
        return self.models.host.checkpoint_config(base, shapes.get(_CONTEXT, (0, 0))[-1])

    # what is done

    def look(self, data: Any, resolution: Any = 512, step: Any = 64) -> look.Look:
        """A first look at a folder. Raises UnitError, DataError, TrainingError."""
        self.allow()
        if not isinstance(data, str) or not 0 < len(data.strip()) <= _LONGEST:
            raise UnitError("data", data, "the path of a folder with pictures", "" if data else
                            "data: type the path of a folder with pictures first")  # fmt: skip
        for name, value, least in (("resolution", resolution, 32), ("bucket_step", step, 8)):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 4096:
                raise UnitError(name, value, f"a whole number from {least} to 4096 (pixels)")
        return look.look(data, resolution, step)

    def start(self, name: Any, config: Any, unload: Any = False) -> RunState:
        """Starts a training in a process of its own. unload: the WebUI's model leaves the device first, until the next
        job. Raises IPAdapterError."""
        self.allow()
        if not isinstance(unload, bool):
            raise UnitError("unload", unload, "true or false")
        launch = Launch(packages=_packages(), variables=self.models.host.training_variables())
        if unload:
            self.models.wait()
            self.models.host.unload()
        return self.runs.start(name, config, launch).state()

    def stop(self, name: Any) -> RunState:
        """Asks a training to save and to end. Raises UnitError, TrainingError."""
        self.allow()
        run = self.runs.run(name)
        run.stop()
        return run.state()

    def state(self, name: Any) -> RunState:
        """What a training is doing; where it is over, its adapter is in the list of models. Raises UnitError."""
        run = self.runs.run(name)
        if run.publish():
            self.models.refresh()
        return run.state()

    def curves(self, name: Any) -> dict[str, list[tuple[int, float]]]:
        """(step, loss) of the training, at most CURVE points, and of the validation. Raises UnitError."""
        progress = self.runs.run(name).progress.update()
        return {"loss": progress.curve(CURVE), "validation": progress.measured[-CURVE:]}

    def config_of(self, name: Any) -> str:
        """The YAML text of a run. Raises UnitError, ConfigError."""
        return self.runs.run(name).text()


def _shapes(path: Path) -> dict[str, Any]:
    if path.suffix.lower() != ".safetensors":  # a pickle takes long to open
        return {}
    try:
        return dict(open_tensors(path).shapes)
    except (IPAdapterError, OSError):
        return {}


def _family(path: Path) -> str:
    return "sdxl" if any(key.startswith(_SDXL) for key in _shapes(path)) else "sd15"


def _memory() -> float:
    """Of the graphics card, GB; 0 without one."""
    import torch

    try:
        return float(torch.cuda.get_device_properties(0).total_memory) / 1e9 if torch.cuda.is_available() else 0.0
    except (RuntimeError, AssertionError):
        return 0.0


def _packages() -> list[Path]:
    """Folders of what the trainer imports and the WebUI has outside its Python's own packages."""
    try:
        spec = importlib.util.find_spec("ldm")
    except (ImportError, ValueError, AttributeError):
        return []
    return [Path(os.path.dirname(place)) for place in (spec.submodule_search_locations or [])] if spec else []
