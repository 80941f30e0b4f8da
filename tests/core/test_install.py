"""install.py and preload.py as the WebUI's launcher runs them, with a launcher that only takes notes."""

from __future__ import annotations

import argparse
import importlib.util
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("safetensors", "open_clip", "PIL")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs install.py where ``missing`` packages are not installed; gives the launcher's pip commands."""

    def run(*missing: str, skip: bool = False, pip: Callable[[str], None] | None = None) -> list[str]:
        commands: list[str] = []
        noted = pip or commands.append
        launch = ModuleType("launch")
        launch.args = SimpleNamespace(skip_install=skip)  # type: ignore[attr-defined]
        launch.run_pip = lambda command, name: noted(command)  # type: ignore[attr-defined]
        find = importlib.util.find_spec
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "launch", launch)
            patch.setattr(
                importlib.util,
                "find_spec",
                lambda name, *rest: None if name in missing else find(name, *rest),
            )
            runpy.run_path(str(ROOT / "install.py"))
        return commands

    return run


def test_nothing_is_installed_where_nothing_is_missing(install):
    assert install() == []


def test_the_launcher_is_not_even_imported_where_nothing_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "launch", None)  # an import of it raises
    runpy.run_path(str(ROOT / "install.py"))


@pytest.mark.parametrize("module", MODULES)
def test_only_what_is_missing_is_installed_and_pinned(install, module):
    (command,) = install(module)
    verb, apart, requirement = command.split(" ")
    name, _, version = requirement.partition("==")
    assert (verb, apart) == ("install", "--no-deps")  # a dependency's bound would move the host's own pins
    assert name.lower().replace("open-clip-torch", "open_clip").replace("pillow", "pil") == module.lower()
    assert version


def test_what_open_clip_imports_comes_with_it(install):
    """Neo has neither open_clip nor, of its dependencies, all that its import takes."""
    assert install("open_clip", "ftfy", "regex") == [
        "install --no-deps open-clip-torch==2.20.0", "install ftfy", "install regex",
    ]  # fmt: skip


def test_what_faces_need_is_installed_in_a_range(install):
    assert install("onnxruntime") == ['install "onnxruntime>=1.15,<1.27"']


def test_without_it_the_rest_starts(install, capsys):
    def refuse(command):
        raise RuntimeError("no wheel for this Python")

    assert install("onnxruntime", pip=refuse) == []
    assert "works without onnxruntime" in capsys.readouterr().out


def test_the_pins_are_those_that_the_tests_run_with(install):
    pins = (ROOT / "tests" / "requirements.txt").read_text().split()
    assert [command.split()[-1] for command in install(*MODULES) if command.split()[-1] not in pins] == []


def test_skip_install_installs_nothing_and_says_what_is_missing(install, capsys):
    assert install("open_clip", skip=True) == []
    said = capsys.readouterr().out
    assert "open-clip-torch" in said
    assert "--skip-install" in said


def parser_after_preload() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    runpy.run_path(str(ROOT / "preload.py"))["preload"](parser)
    return parser


@pytest.mark.parametrize(("argv", "folder"), [([], None), (["--ipadapter-dir", "a b"], "a b")])
def test_preload_adds_the_folder_flag(argv, folder):
    assert parser_after_preload().parse_args(argv).ipadapter_dir == folder
