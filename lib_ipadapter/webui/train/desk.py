"""What a training can be made of here, and the trainings below the folder of adapters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...encoders.recognise import recognise
from ...errors import ConfigError, UnitError
from ...runs import yaml_text
from ...training.runs import look, recipe
from ...training.runs.recipe import Preset
from ...training.runs.runs import Runs
from ...training.runs.state import RunState
from ...unit.names import checked_name
from .place import Place, family

_LONGEST = 4096  # characters of a path
CURVE = 400  # points


class Desk(Place):
    """What the Train part and its routes do."""

    @property
    def runs(self) -> Runs:
        """All trainings."""
        return self.models.runs()

    # what there is

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
        return recipe.suggested("" if path is None else family(path), _memory())

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
            "base_config": "" if base is None else self.yaml_of(base),
            "data": str(data or "").strip(),
            "encoder": "" if file is None or variant == "faceid" else str(file),
            "face_models": "" if faces is None else str(faces),
            "variant": variant or "",
        }  # fmt: skip

    # what is done

    def look(self, data: Any, resolution: Any = 512, step: Any = 64) -> look.Look:
        """A first look at a folder. Raises UnitError, DataError, TrainingError."""
        self.allow()
        _check_named(data)
        if not isinstance(data, str) or not 0 < len(data.strip()) <= _LONGEST:
            raise UnitError("data", data, "the path of a folder with pictures")
        for name, value, least in (("resolution", resolution, 32), ("bucket_step", step, 8)):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 4096:
                raise UnitError(name, value, f"a whole number from {least} to 4096 (pixels)")
        return look.look(data, resolution, step)

    def start(self, name: Any, config: Any, unload: Any = False) -> RunState:
        """Starts a training in a process of its own. unload: the WebUI's model leaves the device first, until the next
        job. Raises IPAdapterError."""
        self.allow()
        checked_name("name", name)
        given = dict(config) if isinstance(config, Mapping) else yaml_text.fields_of(config)
        launch = self.launch(unload, not os.path.isdir(str(given.get("base"))))
        try:
            return self.runs.start(name, given, launch).state()
        except ConfigError as error:
            if error.detail["field"] == "data":
                _check_named(given.get("data"))
            raise

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


def _check_named(data: Any) -> None:
    """Raises UnitError where nothing is named."""
    if data is None or (isinstance(data, str) and not data.strip()):
        raise UnitError("data", data, "the path of a folder with pictures",
                        "data: type the path of a folder with pictures first")  # fmt: skip


def _memory() -> float:
    """Of the graphics card, GB; 0 without one."""
    import torch

    try:
        return float(torch.cuda.get_device_properties(0).total_memory) / 1e9 if torch.cuda.is_available() else 0.0
    except (RuntimeError, AssertionError):
        return 0.0
