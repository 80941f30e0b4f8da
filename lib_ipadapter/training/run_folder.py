"""The run's folder: the resolved config, the log, checkpoints that are never half-written.

OUT/config.yaml            every field, defaults included
OUT/identity.json          hashes of data, base and encoder, and the number of processes
OUT/log.jsonl              step, loss, learning rate, pictures a second, time (seconds since the epoch); one line a step
OUT/stop                   a file of this name ends the training after its step, as Ctrl-C does
OUT/broken.txt             pictures that could not be read, and why
OUT/checkpoints/step-N/    ip_adapter.safetensors and the state to resume from
OUT/ip_adapter.safetensors the newest of them
OUT/samples, OUT/tensorboard
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout  # of torch's own requirements

from ..errors import ConfigError, FileError, printable
from ..runs.folder import STOP
from .config import TrainConfig

ADAPTER, IDENTITY = "ip_adapter.safetensors", "identity.json"
LOCK = ".lock"
_WAIT = 10.0  # seconds: workers of a training that was killed hold the lock until they notice
_HELD: dict[Path, FileLock] = {}  # folders of this process
_PREFIX = "step-"
_TORCH_WRITERS = ("PytorchStreamWriter", "inline_container")  # which torch.save's errors on a full disk name


class RunFolder:
    """Made by the main process alone."""

    def __init__(self, root: Path, config: TrainConfig) -> None:
        self.root, self.config = root, config
        self.checkpoints = root / "checkpoints"

    def begin(self) -> None:
        """Makes the folder. Raises ConfigError when a training of other settings is in it, or one that runs, and
        FileError."""
        config = self.root / "config.yaml"
        if os.path.isfile(config) and self.latest() is not None:
            self._check_settings(config)
        with writing(self.root):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._hold()
            for left in self.checkpoints.glob(".part-*"):
                shutil.rmtree(left, ignore_errors=True)
            (self.root / STOP).unlink(missing_ok=True)
            if self.latest() is None:
                _replace(config, _as_yaml(self.config))

    def _hold(self) -> None:
        """The folder is this process's until ``release``, or its end."""
        root = self.root.absolute()
        if root in _HELD:
            return
        lock = FileLock(root / LOCK)
        try:
            lock.acquire(timeout=_WAIT)
        except Timeout:
            raise ConfigError(
                "out", str(self.root), "a folder that no other process is training in; wait for its end, or stop it"
            ) from None
        except NotImplementedError:  # a disk without locks
            return
        _HELD[root] = lock

    def release(self) -> None:
        """Another process may train in the folder."""
        if (lock := _HELD.pop(self.root.absolute(), None)) is not None:
            lock.release()

    def _check_settings(self, path: Path) -> None:
        from .yaml_file import read_yaml

        other = TrainConfig.parse(read_yaml(path))
        if other.hash != self.config.hash:
            old, new = other.as_dict(), self.config.as_dict()
            changed = [f"{name} was {old[name]!r}" for name in new if new[name] != old[name] and name != "out"]
            raise ConfigError(
                "out", str(self.root), f"a new folder: another training is in it ({', '.join(changed)}). "
                "Give those values back to resume it",
            )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """What the training in the folder was made of; empty when there is no checkpoint to resume from."""
        path = self.root / IDENTITY
        if self.latest() is None or not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileError(path, f"cannot be read ({error}); delete it to resume without this check") from None
        return found if isinstance(found, dict) else {}

    def write(self, identity: Mapping[str, Any]) -> None:
        """Writes the resolved config and what the training is made of. Raises FileError."""
        with writing(self.root):
            _replace(self.root / "config.yaml", _as_yaml(self.config))
            _replace(self.root / IDENTITY, json.dumps(identity, indent=2) + "\n")

    def asked_to_stop(self) -> bool:
        """Whether somebody put the file there."""
        return (self.root / STOP).exists()

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        found = [path.name[len(_PREFIX) :] for path in self.checkpoints.glob(f"{_PREFIX}*") if path.is_dir()]
        return sorted(int(name) for name in found if re.fullmatch("[0-9]{8,18}", name))

    def latest(self) -> tuple[int, Path] | None:
        """The newest checkpoint: (its step, its folder)."""
        steps = self.steps()
        return (steps[-1], self.of(steps[-1])) if steps else None

    def of(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.checkpoints / f"{_PREFIX}{step:08d}"

    def part(self, step: int) -> Path:
        """Where a checkpoint is written before it is whole."""
        return self.checkpoints / f".part-{step:08d}"

    def publish(self, step: int) -> None:
        """The part becomes the step's checkpoint and OUT's adapter; the oldest beyond ``keep`` go."""
        with writing(self.root):
            _check_whole(self.part(step))
            final = self.of(step)
            if final.exists():
                shutil.rmtree(final)
            os.replace(self.part(step), final)
            copy = self.root / f".{ADAPTER}.part"
            shutil.copyfile(final / ADAPTER, copy)
            os.replace(copy, self.root / ADAPTER)
            for old in self.steps()[: -self.config.keep]:
                shutil.rmtree(self.of(old), ignore_errors=True)

    def trim_log(self, step: int) -> None:
        """Drops what was logged behind ``step``: it is done again; and lines that a full disk or a crash cut off."""
        path = self.root / "log.jsonl"
        if path.is_file():
            with writing(self.root):
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                kept = [line for line in lines if _step_of(line) <= step]
                _replace(path, "".join(f"{line}\n" for line in kept))

    def log(self, values: Mapping[str, float | int]) -> None:
        """One line of the log."""
        with writing(self.root), (self.root / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def broken(self, key: str, reason: str) -> None:
        """One line of the list of broken pictures."""
        with writing(self.root), (self.root / "broken.txt").open("a", encoding="utf-8") as file:
            file.write(printable(f"{key}\t{reason}\n"))


def _step_of(line: str) -> float:
    """The step that a line of the log tells of; inf for one that was cut off as it was written."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return math.inf


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A full disk or a folder that cannot be written to becomes a FileError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif any(name in str(error) for name in _TORCH_WRITERS):
            reason = _cut_off(folder)
        else:
            raise
        raise FileError(
            folder, f"cannot be written to: {reason}. The last whole checkpoint is kept; make room and start the same "
            "command again to resume from it",
        ) from error  # fmt: skip


def _check_whole(folder: Path) -> None:
    """torch.save passes over a failed write of a file's last bytes, where the list of its content is. Raises
    OSError."""
    for path in folder.rglob("*"):
        if path.is_file() and not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                if file.read(4) == b"PK\x03\x04":
                    raise OSError(_cut_off(folder))


def _cut_off(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    return f"torch could not write a whole file, and {free / 1e6:.1f} MB are free there"


def _as_yaml(config: TrainConfig) -> str:
    import yaml

    text: str = yaml.safe_dump(config.as_dict(), sort_keys=False)
    return text


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
