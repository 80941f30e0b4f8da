"""A process of its own: known by its number and by when it was made, for numbers are used again.

When it was made is said by the system's clock; on Linux, where that is reckoned from the clock of now, which may have
been set since, by the boot and its ticks.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TrainingError

_SAME = 2.0  # seconds: the system's clock may be set while a process runs
_OURS: dict[int, subprocess.Popen[bytes]] = {}  # started by this process: they leave a zombie until they are asked for


@dataclass(frozen=True)
class Process:
    """pid: its number; made: when the system made it, seconds since the epoch; tick: which boot and tick that was, ""
    where the system does not say."""

    pid: int
    made: float
    tick: str = ""

    def alive(self) -> bool:
        """Whether it runs, and is no other process that has got its number since."""
        if self.pid in _OURS and _OURS[self.pid].poll() is not None:
            return False
        return self._found() is not None

    def terminate(self) -> None:
        """Asks it to end, as SIGTERM does; Windows ends it at once."""
        found = self._found()
        if found is not None:
            with contextlib.suppress(Exception):  # gone in between, or another user's
                found.terminate()

    def _found(self) -> Any:
        import psutil

        try:
            found = psutil.Process(self.pid)
            same = self.tick == _tick(self.pid) if self.tick else abs(found.create_time() - self.made) < _SAME
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.Error, OSError, ValueError, OverflowError):
            return None


def _tick(pid: int) -> str:
    """The boot's name, and the ticks from it to when a process was made (proc(5), starttime); "" but on Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        return f"{boot} {after_name.split()[19]}"
    except (OSError, IndexError):
        return ""


def require() -> None:
    """Raises TrainingError where what follows a process is missing."""
    try:
        import psutil  # noqa: F401
    except ImportError:
        raise TrainingError("psutil is not installed; run: pip install psutil accelerate tqdm pyyaml") from None


def spawn(command: Sequence[str], folder: Path, env: Mapping[str, str], log: Path) -> Process:
    """Starts a command whose output goes to the file ``log``, and which outlives this process and its console. Raises
    TrainingError."""
    import psutil

    own: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        own = {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
               | getattr(subprocess, "CREATE_NO_WINDOW", 0)}  # fmt: skip
    try:
        with log.open("wb") as output:
            child = subprocess.Popen(
                list(command), cwd=folder, env=dict(env), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, **own,
            )  # fmt: skip
    except (OSError, ValueError) as error:  # ValueError: a null byte in an argument
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(
            f"the process cannot be started ({reason}); expected to run {command[0]} in {folder} and to write {log}"
        ) from None
    _OURS[child.pid] = child
    try:
        return Process(child.pid, psutil.Process(child.pid).create_time(), _tick(child.pid))
    except psutil.Error:  # over already
        return Process(child.pid, 0.0)
