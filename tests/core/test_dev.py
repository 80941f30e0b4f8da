"""dev.py: what it counts, when it fails, and what it refuses to overwrite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dev

TESTS = """
import pytest

def test_good(): pass

def test_bad(): assert {value}

def test_away(): pytest.skip("no such thing here")
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs pytest through dev.py on a folder with one file of this content."""

    def run(content: str) -> dev.Result:
        monkeypatch.setattr(dev, "ROOT", tmp_path)
        (tmp_path / "tests" / "small").mkdir(parents=True)
        (tmp_path / "tests" / "small" / "test_small.py").write_text(content)
        return dev.run_tests("small", Path(sys.executable))

    return run


@pytest.mark.parametrize(("value", "failed"), [(True, 0), (False, 1)])
def test_a_suite_is_counted_with_the_reasons_of_its_skips(suite, value, failed):
    result = suite(TESTS.format(value=value))
    assert (result.passed, result.failed, result.skipped) == (2 - failed, failed, 1)
    assert len(result.reasons) == 1
    assert "no such thing here" in result.reasons[0]


@pytest.mark.parametrize("content", ["import nothing_of_this_name", "import os; os._exit(7)"])
def test_a_suite_that_cannot_even_run_has_failed(suite, content):
    assert suite(content).failed == 1


def test_the_report_ends_with_the_totals_and_fails_when_anything_did(capsys):
    results = [dev.Result("a", 3, 0, 1, 0.5, ["SKIPPED because"]), dev.Result("b", 2)]
    assert dev.report(results) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "5 passed, 0 failed, 1 skipped"
    assert "SKIPPED because" in said
    assert dev.report([*results, dev.Result("c", 1, 1)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "6 passed, 1 failed, 1 skipped"


def test_a_command_that_fails_is_a_failure():
    result = dev.run_command("x", [[sys.executable, "-c", f"raise SystemExit({code})"] for code in (0, 1, 2)])
    assert (result.passed, result.failed) == (1, 2)


def test_every_suite_of_tests_has_its_folder():
    missing = [name for name in dev.SUITES[2:] if not any((dev.ROOT / "tests" / name).glob("test_*.py"))]
    assert missing == []


def test_a_wrong_python_is_told_which_ones_fit(monkeypatch):
    monkeypatch.setattr(dev, "PYTHONS", ((3, 99),))
    with pytest.raises(SystemExit, match=r"needs Python 3\.10 or 3\.11"):
        dev.find_python()


def test_a_folder_with_other_things_is_never_cleared(tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("years of work")
    monkeypatch.setenv("IPADAPTER_DEV_ENV", str(tmp_path))
    with pytest.raises(SystemExit, match="holds other things"):
        dev.environment()
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_environment_is_made_once_and_again_when_the_requirements_change(tmp_path, monkeypatch):
    """Nothing is downloaded: the requirements are files without a requirement."""
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text("# nothing\n")
    monkeypatch.setattr(dev, "REQUIREMENTS", files)
    monkeypatch.setenv("IPADAPTER_DEV_ENV", str(tmp_path / "env"))
    python = dev.environment()
    assert subprocess.run([str(python), "-c", "import pip"]).returncode == 0

    made: list[Path] = []
    monkeypatch.setattr(dev, "make", lambda home, python: made.append(home))
    assert dev.environment() == python
    assert made == []
    files[1].write_text("# changed\n")
    dev.environment()
    assert made == [tmp_path / "env"]


def test_requirements_that_cannot_be_had_end_with_a_sentence(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text(f"{tmp_path}/no-such-package\n")
    monkeypatch.setattr(dev, "REQUIREMENTS", [file, file])
    monkeypatch.setenv("IPADAPTER_DEV_ENV", str(tmp_path / "env"))
    with pytest.raises(SystemExit, match="could not be made"):
        dev.environment()
    assert not (tmp_path / "env" / "requirements.sha256").exists()


@pytest.mark.parametrize("argv", [["test", "--only", "core,nonsense"], [], ["nonsense"]])
def test_bad_arguments_are_refused(argv):
    run = subprocess.run(
        [sys.executable, str(dev.ROOT / "dev.py"), *argv],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert run.returncode != 0
    assert "Traceback" not in run.stderr


def test_unknown_suites_are_named():
    run = subprocess.run(
        [sys.executable, str(dev.ROOT / "dev.py"), "test", "--only", "core,nonsense"],
        capture_output=True,
        text=True,
    )
    assert "got nonsense, expected some of lint" in run.stderr
