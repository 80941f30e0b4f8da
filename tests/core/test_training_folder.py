"""The folder of a training: a log that was cut off, and one process at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lib_ipadapter.errors import ConfigError
from lib_ipadapter.training import run_folder
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.run_folder import LOCK, RunFolder

HOLDS = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    input()
"""


def folder(out: Path) -> RunFolder:
    return RunFolder(out, TrainConfig.parse({"base": "b", "data": "d", "encoder": "e", "out": str(out)}))


def test_lines_that_were_cut_off_hold_nothing_up(tmp_path: Path):
    """A full disk takes the end of a line, and what is written behind it continues it."""
    whole = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 5)]
    (tmp_path / "log.jsonl").write_text("\n".join([*whole[:2], whole[2][:9] + whole[2], "[]", whole[3][:7]]))
    folder(tmp_path).trim_log(3)
    assert (tmp_path / "log.jsonl").read_text() == f"{whole[0]}\n{whole[1]}\n"


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_folder, "_WAIT", 0.0)
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / LOCK)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        part = folder(tmp_path).part(3)
        part.mkdir(parents=True)
        with pytest.raises(ConfigError, match="no other process is training in"):
            folder(tmp_path).begin()
        assert part.is_dir(), "what the other one writes was taken away"
        other.kill()
        other.communicate()
    own = folder(tmp_path)
    own.begin()
    folder(tmp_path).begin()  # of this process
    own.release()
    held = subprocess.run([sys.executable, "-c", HOLDS, str(tmp_path / LOCK)], input="\n", capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert held.stdout == "held\n"
