"""Reads hostile files by the thousand: ``python -m tests.hostile COUNT [SEED]``.

Each is opened by every reader of this package. Nothing of a file may run, no other path may be opened, nothing may
hang, memory stays below a bound, and all that is ever raised is one of the package's errors. Exit code 1 otherwise.
"""

from __future__ import annotations

import collections
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.adapters.inspect import report
from lib_ipadapter.encoders.files import opened
from lib_ipadapter.encoders.layout import tower_keys
from lib_ipadapter.errors import IPAdapterError
from lib_ipadapter.files.library import looks_like_adapter
from lib_ipadapter.files.tensors import load_state, open_tensors
from lib_ipadapter.prompts.embeds import read
from tests import hostile_files, hostile_zips
from tests.hostile_bytes import KINDS
from tests.synthetic import adapter_tensors, write_adapter

assert {hostile_files.__name__, hostile_zips.__name__} <= {make.__module__ for make in KINDS.values()}
MEMORY = 700  # MB above what the process has with good files read
SECONDS = 60  # for one file and all readers
RUNS_CODE = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn",
    "exec", "compile", "import", "socket.connect", "socket.bind", "ctypes.dlopen", "os.remove", "os.rename", "os.mkdir",
    "shutil.", "tempfile.", "webbrowser.", "os.symlink", "os.link", "os.chmod", "marshal.loads", "pickle.find_class",
)  # fmt: skip


def encoder(path: Path) -> None:
    with opened(path) as (shapes, read_one):
        tower_keys(shapes)
        for key in list(shapes)[:5]:
            read_one(key)


READERS: dict[str, Callable[[Path], Any]] = {
    "tensors": lambda path: open_tensors(path).tensors(), "adapter": Adapter.load, "inspect": report,
    "encoder": encoder,
    "library": looks_like_adapter, "state": load_state, "embeds": read,
}  # fmt: skip


class Hang(BaseException):
    """A reader took too long; no OSError, as TimeoutError is."""


class Watch:
    """An audit hook that notes what no reader may do."""

    def __init__(self) -> None:
        self.path = ""
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.path:
            return
        if event == "open":
            if isinstance(args[0], (str, bytes)) and os.fsdecode(args[0]) != self.path:
                self.seen.append(f"opened {os.fsdecode(args[0])}")
        elif event.startswith(RUNS_CODE) and event != "importlib":
            self.seen.append(f"{event} {str(args)[:100]}")


def read_all(path: Path) -> Iterator[tuple[str, str]]:
    """(reader, outcome): "read", the error's name, or a fault."""
    for name, reader in READERS.items():
        try:
            reader(path)
            yield name, "read"
        except IPAdapterError as error:
            str(error).encode()  # it can be printed and sent
            yield name, type(error).__name__
        except Hang:
            yield name, f"fault: took more than {SECONDS} s"
        except Exception as error:
            yield name, f"fault: {type(error).__name__}: {str(error)[:200]}"


def _too_long(*_args: object) -> None:
    raise Hang


def peak() -> float:
    """MB of RAM that the process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def warm_up(folder: Path) -> None:
    """Whatever is imported at the first use is imported: zipfile's codec of old names, too."""
    b"x".decode("cp437")
    for style in ("safetensors", "pickle", "accelerate"):
        path = folder / f"good.{'safetensors' if style == 'safetensors' else 'bin'}"
        write_adapter(path, adapter_tensors("plus"), style)
        assert dict(read_all(path))["inspect"] == "read"


def run(count: int, seed: int) -> dict[str, Any]:
    """Reads ``count`` files; what came of it."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    trap, target = folder / "trap", folder / "files"
    target.mkdir()
    warm_up(folder)
    watch, outcomes, faults = Watch(), collections.Counter[str](), list[str]()
    slowest, started, before = (0.0, ""), time.time(), peak()
    signal.signal(signal.SIGALRM, _too_long)
    for index in range(count):
        rng = random.Random(f"{seed}-{index}")
        kind = list(KINDS)[index % len(KINDS)]
        path = target / f"{index}{rng.choice(['.safetensors', '.bin', '.pt', '.ckpt'])}"
        KINDS[kind](rng, path, trap)
        if index % 1000 == 999:
            print(f"{index + 1} files, {time.time() - started:.0f} s", file=sys.stderr, flush=True)
        watch.path, begun, memory = str(path), time.process_time(), peak()
        signal.alarm(SECONDS)
        results = list(read_all(path))
        signal.alarm(0)
        watch.path = ""
        slowest = max(slowest, (round(time.process_time() - begun, 2), f"{kind} {index}"))
        outcomes.update(f"{kind}: {outcome}" for _, outcome in results)
        faults += [f"{kind} {index}: {name}: {outcome}" for name, outcome in results if outcome.startswith("fault")]
        faults += [f"{kind} {index}: {what}" for what in watch.seen]
        faults += [f"{kind} {index}: its code ran"] if trap.exists() else []
        faults += [f"{kind} {index}: {peak() - before:.0f} MB"] if peak() - before > MEMORY and peak() > memory else []
        trap.unlink(missing_ok=True)
        watch.seen.clear()
        (shutil.rmtree if path.is_dir() and not path.is_symlink() else os.unlink)(path)
    shutil.rmtree(folder)
    return {"files": count, "seconds": round(time.time() - started, 1), "memory_mb": round(peak() - before),
            "slowest": slowest, "outcomes": dict(sorted(outcomes.items())), "faults": faults}  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    faulthandler.enable()
    result = run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(json.dumps(result, indent=1))
    sys.exit(1 if result["faults"] else 0)
