"""The law of the house: only ``lib_ipadapter/webui`` may know the WebUI, and start-up stays cheap."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import lib_ipadapter

ROOT = Path(lib_ipadapter.__file__).resolve().parents[1]
PACKAGE = ROOT / "lib_ipadapter"
HOST_ROOM = "lib_ipadapter.webui"
HOST_PACKAGES = ("modules", "gradio", "fastapi", "launch", "k_diffusion")
# What takes long to import and may only be imported by the function that needs it.
HEAVY = ("open_clip", "transformers", "diffusers", "ldm", "sgm")
# Rooms that the panel, the command line's help and the settings need before any model is touched.
WITHOUT_TORCH = ("lib_ipadapter.errors", "lib_ipadapter.options", "lib_ipadapter.unit", "lib_ipadapter.cli")

PROBE = """
import importlib, json, sys
blocked, names = json.loads(sys.argv[1])

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
for name in names:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def rooms() -> list[str]:
    """Every module outside the host's room."""
    found = pkgutil.walk_packages([str(PACKAGE)], "lib_ipadapter.")
    names = ["lib_ipadapter", *(module.name for module in found if not module.name.endswith("__main__"))]
    return [name for name in names if not name.startswith(HOST_ROOM)]


def loaded(names: list[str], blocked: tuple[str, ...]) -> set[str]:
    """The modules that a fresh Python has after importing ``names`` with ``blocked`` packages missing."""
    command = [sys.executable, "-c", PROBE, json.dumps([blocked, names])]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def imports(path: Path) -> set[str]:
    """The packages that a file imports anywhere, inside functions too; relative imports apart."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def files_outside_the_host_room() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "webui" not in p.relative_to(PACKAGE).parts)


def test_all_rooms_but_the_hosts_import_without_the_webui():
    names = rooms()
    assert "lib_ipadapter.attention.session" in names  # else the walk found nothing and this proves nothing
    modules = loaded(names, HOST_PACKAGES)
    assert set(names) <= modules


def test_nothing_heavy_is_imported_before_it_is_needed():
    modules = loaded(rooms(), HOST_PACKAGES)
    assert {name for name in modules if name.split(".")[0] in HEAVY} == set()


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_rooms_that_must_start_without_torch(name):
    assert name in loaded([name], ("torch", *HOST_PACKAGES, *HEAVY))


@pytest.mark.parametrize(
    "path", files_outside_the_host_room(), ids=lambda p: p.relative_to(PACKAGE).as_posix()
)
def test_no_file_outside_the_hosts_room_names_a_host_package(path):
    """A function that imports the host lazily would pass the test above."""
    assert imports(path) & set(HOST_PACKAGES) == set()


def test_only_the_hosts_room_is_imported_by_the_entry():
    assert imports(ROOT / "scripts" / "ip_adapter.py") <= {"pathlib", "lib_ipadapter", "modules"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix()
)
def test_files_stay_short_and_say_what_they_are(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350, "split it by concept"
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "the file's first line says what it is"
