"""What a training is made of, by content and not by path: whether a run in OUT is the one that is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapters.file import sha256
from ..encoders import weight_file
from ..errors import ConfigError, TrainingError
from .config import TrainConfig
from .run_folder import RunFolder

# Files of the config, and what the message calls them
_FILES = {
    "base": "the base model", "base_config": "the base model's yaml", "encoder": "the encoder",
    "init": "the adapter of init",
    "init_layers": "the adapter of init_layers",
}  # fmt: skip


def identity_of(config: TrainConfig, data: str, processes: int) -> dict[str, Any]:
    """JSON-safe. data: the source's identity; processes: their number, which decides the order of the pictures."""
    paths = {name: getattr(config, name) for name in _FILES}
    if config.encoder:
        paths["encoder"] = str(weight_file(config.encoder))
    files = {name: _content(path, folder=name == "base") for name, path in paths.items()}
    return {"processes": processes, "data": data, **files}


def _content(path: str, folder: bool) -> str:
    """Hash of a file; of what may be a folder, of its files' names and sizes. Raises FileError."""
    if not path:
        return ""
    if not folder or not os.path.isdir(path):
        return sha256(path)
    files = sorted(p for p in Path(path).rglob("*") if os.path.isfile(p))
    lines = (f"{p.relative_to(path).as_posix()}\0{p.stat().st_size}\n" for p in files)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], root: Path) -> None:
    """Raises ConfigError when a training of other content, or on another number of processes, is in ``root``."""
    there, here = before.get("processes"), now["processes"]
    if there not in (None, here):
        raise ConfigError(
            "processes", here, f"{there}, as the training in {root} began with: each step's pictures depend on their "
            "number. Start as many, or give another out",
        )  # fmt: skip
    names = {"data": "the data (names, sizes or captions)", **_FILES, "encoder_config": "the encoder's config"}
    changed = [words for name, words in names.items() if name in before and before[name] != now[name]]
    if changed:
        raise ConfigError(
            "out", str(root), "a new folder: the training in it began with other content of "
                              f"{', '.join(changed)}. Give that "
            "back to resume it",
        )  # fmt: skip


def agreed_step(accelerator: Any, folder: RunFolder) -> int | None:
    """The step to resume at, which the main process decides for all; None: from the beginning. Raises TrainingError
    on every process when one of them does not see that checkpoint."""
    from accelerate.utils import broadcast_object_list
    from torch import tensor

    latest = folder.latest()
    (step,) = broadcast_object_list([latest[0] if latest else -1])
    if step < 0:
        return None
    lacking = tensor(float(not folder.of(step).is_dir()), device=accelerator.device)
    count = int(accelerator.reduce(lacking, reduction="sum"))
    if count:
        raise TrainingError(
            f"{count} of {accelerator.num_processes} processes do not see the checkpoint of step {step} in "
            f"{folder.root}; "
            "put out on a disk that all nodes share, or copy the folder to each node"
        )
    return int(step)
