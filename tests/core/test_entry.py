"""scripts/ip_adapter.py in a process where another extension has loaded a package of the same name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import importlib.util, sys, types
folder, root, first = sys.argv[1:]
sys.path.append(folder)
if first == "namespace":
    import lib_ipadapter.IPAdapterPlus as theirs
if first == "package":
    other = folder + "/other/lib_ipadapter/__init__.py"
    sys.modules["lib_ipadapter"] = types.SimpleNamespace(__file__=other, __path__=[])
for name in ("modules", "modules.script_callbacks", "modules.scripts", "lib_ipadapter.webui.entry"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["modules"].script_callbacks = sys.modules["modules.script_callbacks"]
sys.modules["modules"].scripts = sys.modules["modules.scripts"]
sys.modules["modules.scripts"].Script = object
sys.modules["lib_ipadapter.webui.entry"].register = lambda callbacks: "registered"
sys.path.insert(0, root)
spec = importlib.util.spec_from_file_location("ip_adapter", root + "/scripts/ip_adapter.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.lifecycle == "registered"
import lib_ipadapter
assert lib_ipadapter.__file__.startswith(root), lib_ipadapter.__file__
from lib_ipadapter.IPAdapterPlus import name
from lib_ipadapter.unit import Unit
assert name == "theirs"
if first == "namespace":
    assert sys.modules["lib_ipadapter.IPAdapterPlus"] is theirs
"""


@pytest.mark.parametrize("first", ["nobody", "namespace", "package"])
def test_both_portions_of_the_name_are_found(tmp_path: Path, first: str):
    theirs = tmp_path / "lib_ipadapter"
    theirs.mkdir()
    (theirs / "IPAdapterPlus.py").write_text('name = "theirs"\n')
    command = [sys.executable, "-c", PROBE, str(tmp_path), str(ROOT), first]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


REGISTERS = """
import sys
from unittest import mock

for name in ("api", "settings", "hosts", "infotext", "lifecycle", "models", "panel", "panel.panel", "panel.send",
             "request", "train", "train.tab", "xyz"):
    sys.modules[f"lib_ipadapter.webui.{name}"] = mock.MagicMock()
sys.modules["modules"] = mock.MagicMock()
from lib_ipadapter.webui import entry

depths = []

def read_stack(*args):
    frame, depth = sys._getframe(), 0
    while frame := frame.f_back:
        depth += 1
    depths.append(depth)

def below(frames, callbacks):
    return below(frames - 1, callbacks) if frames else entry.register(callbacks)

callbacks = mock.MagicMock()
callbacks.on_ui_tabs.side_effect = read_stack
below(10, callbacks)
below(100, callbacks)
print(*depths)
callbacks.on_ui_tabs.side_effect = ValueError("not registered")
below(10, callbacks)
"""


def test_callbacks_are_registered_from_a_short_stack_and_errors_come_through():
    """The WebUI reads all of the stack with each of them."""
    run = subprocess.run([sys.executable, "-c", REGISTERS], capture_output=True, text=True, cwd=ROOT)
    print(run.stderr)
    once, again = map(int, run.stdout.split())
    assert once == again < 10
    assert run.returncode == 1
    assert run.stderr.endswith("ValueError: not registered\n")
