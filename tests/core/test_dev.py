"""dev.py: what it counts, when it fails, and what it refuses to overwrite."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import dev
from tests import quick

TESTS = """
import pytest

def test_good(): pass

def test_bad(): assert {value}

def test_away(): pytest.skip("no such thing here")
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs pytest through dev.py on a folder with one file of this content."""

    # Plugins take most of the time of so small a run.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(content: str, **options: str) -> dev.Result:
        monkeypatch.setattr(dev, "ROOT", tmp_path)
        (tmp_path / "tests" / "small").mkdir(parents=True)
        (tmp_path / "tests" / "small" / "test_small.py").write_text(content)
        return dev.run_tests("small", Path(sys.executable), **options)

    return run


@pytest.mark.parametrize(("value", "failed"), [(True, 0), (False, 1)])
def test_a_suite_is_counted_with_the_reasons_of_its_skips(suite, value, failed):
    result = suite(TESTS.format(value=value))
    assert (result.passed, result.failed, result.skipped) == (2 - failed, failed, 1)
    assert len(result.reasons) == 1
    assert "no such thing here" in result.reasons[0]
    assert [line.partition(" - ")[0] for line in result.failures] == [
        "FAILED tests/small/test_small.py::test_bad"
    ] * failed


@pytest.mark.parametrize("content", ["import nothing_of_this_name", "import os; os._exit(7)"])
def test_a_suite_that_cannot_even_run_has_failed(suite, content):
    assert suite(content).failed == 1


def test_the_report_ends_with_the_totals_and_fails_when_anything_did(capsys):
    results = [dev.Result("a", 3, 0, 1, 0.5, ["SKIPPED because"]), dev.Result("b", 2)]
    assert dev.report(results, 1.5) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "5 passed, 0 failed, 1 skipped"
    assert "SKIPPED because" in lines
    assert dev.report([*results, dev.Result("c", 1, 1, failures=["FAILED test_c"])], 1.5) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "6 passed, 1 failed, 1 skipped"
    assert "FAILED test_c" in lines  # once more, below the table: a long log is often cut


def test_a_command_that_fails_is_a_failure():
    result = dev.run_command("x", [[sys.executable, "-c", f"raise SystemExit({code})"] for code in (0, 1, 2)])
    assert (result.passed, result.failed) == (1, 2)


def test_every_suite_of_tests_has_its_folder_and_its_turn():
    folders = [name for name in dev.SUITES[2:] if name not in ("current", "forks")]
    assert [name for name in folders if not any((dev.TESTS / name).glob("test_*.py"))] == []
    assert {path.parent.name for path in dev.TESTS.glob(f"*/{dev.FORKS}")} == {"webui", "browser"}
    assert [name for name in dev.CURRENT if not (dev.TESTS / name).is_file()] == []
    assert sorted(dev.ORDER) == sorted(dev.SUITES)


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_suites_run_alone_or_several_at_once_with_the_same_results(monkeypatch, lanes):
    running, most = [0], [0]

    def suite(name, python, quick, shown, wanted, part=(0, 1)) -> dev.Result:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        running[0] -= 1
        assert bool(shown) == (lanes > 1)
        return dev.Result(name, passed=len(dev.files_of(name, part)), reasons=[name])

    monkeypatch.setattr(dev, "run_suite", suite)
    monkeypatch.setattr(dev, "at_once", lambda: lanes)
    results = dev.run_suites(["webui", "core", "lint", "ldm"], Path(), False)
    assert [(r.name, r.passed) for r in results] == [
        (n, len(dev.files_of(n))) for n in ("lint", "core", "ldm", "webui")
    ]
    assert len(results[-1].reasons) == (dev.PARTS["webui"] if lanes > 1 else 1)
    assert most == [lanes]


@pytest.mark.parametrize(
    ("cores", "gibibytes", "lanes"), [(1, 64, 2), (2, 23.5, 3), (2, 15.5, 2), (8, 8, 1), (2, 4, 1)]
)
def test_how_many_run_at_once(monkeypatch, cores, gibibytes, lanes):
    monkeypatch.setattr(dev.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(
        dev.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, int(gibibytes * 2**30) // 4096)
    )
    assert dev.at_once() == lanes


def test_every_file_of_tests_is_in_one_suite_and_one_part():
    suites = [name for name in dev.SUITES[2:] if name not in ("current", "forks")]
    parts = [dev.files_of(name, (i, n)) for name in suites for n in [dev.PARTS.get(name, 1)] for i in range(n)]
    assert all(parts)
    together = sorted(path for part in parts for path in part) + list(dev.files(f"*/{dev.FORKS}"))
    assert sorted(together) == sorted(dev.files("*/test_*.py"))


def test_a_suite_beside_another_is_counted_alike_and_its_lines_say_whose_they_are(suite, capsys):
    result = suite(TESTS.format(value=False), shown="small | ")
    assert (result.passed, result.failed, result.skipped) == (1, 1, 1)
    assert all(line.startswith("small | ") for line in capsys.readouterr().out.splitlines())


def test_a_suite_whose_environment_cannot_be_made_is_skipped_with_the_reason(monkeypatch):
    def fails(env: dev.Environment) -> Path:
        raise dev.CannotMake("no such release")

    monkeypatch.setattr(dev, "environment", fails)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("IPADAPTER_CURRENT_ENV", "/no such folder")
    assert "--only current" in dev.run_suite("current", Path(sys.executable)).reasons[0]
    result = dev.run_suite("current", Path(sys.executable), wanted=True)
    assert (result.passed, result.failed, result.skipped) == (0, 0, 1)
    assert result.reasons == ["SKIPPED current: no such release"]


def test_forks_run_when_asked_for_and_in_no_other_suite(monkeypatch):
    ran: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []

    def tests(name: str, python: Path, files: tuple[str, ...], options: tuple[str, ...], shown: str) -> dev.Result:
        ran.append((name, files, options))
        return dev.Result(name)

    monkeypatch.setattr(dev, "run_tests", tests)
    assert "--only forks" in dev.run_suite("forks", Path()).reasons[0]
    assert not ran
    dev.run_suite("forks", Path(), wanted=True)
    dev.run_suite("webui", Path())
    (forks, files, _), (webui, own, _) = ran
    assert (forks, webui) == ("forks", "webui")
    assert {"webui/test_forks.py", "browser/test_forks.py"} <= set(files)
    assert "webui/test_api.py" in own
    assert not set(files) & set(own)


def test_a_wrong_python_is_told_which_ones_fit(monkeypatch):
    monkeypatch.setattr(dev, "PYTHONS", ((3, 99),))
    with pytest.raises(SystemExit, match=r"needs Python 3\.10 or 3\.11"):
        dev.find_python()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dev.Environment:
    """An environment whose requirements are files without a requirement."""
    files = (tmp_path / "a.txt", tmp_path / "b-nodeps.txt")
    for file in files:
        file.write_text("# nothing\n")
    monkeypatch.setenv("SMALL_ENV", str(tmp_path / "env"))
    return dev.Environment(".venv-small", "SMALL_ENV", files)


def test_a_folder_with_other_things_is_never_cleared(small):
    small.home.mkdir()
    (small.home / "thesis.txt").write_text("years of work")
    with pytest.raises(dev.CannotMake, match=r"holds other things.*set SMALL_ENV"):
        dev.environment(small)
    assert (small.home / "thesis.txt").read_text() == "years of work"


def test_an_environment_is_made_once_and_again_when_the_requirements_change(small, monkeypatch):
    made: list[Path] = []

    def make(env: dev.Environment) -> None:
        made.append(env.home)
        env.python.parent.mkdir(parents=True, exist_ok=True)
        env.python.touch()

    monkeypatch.setattr(dev, "make", make)
    for _ in range(2):
        assert dev.environment(small) == small.python
        assert made == [small.home]
    small.requirements[1].write_text("# changed\n")
    dev.environment(small)
    assert made == [small.home] * 2


def test_how_an_environment_is_made(small, monkeypatch):
    """Making one for each test run would take longer than the test; CI makes the real one."""
    commands: list[list[str]] = []
    answer = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(dev.subprocess, "run", lambda command, **kwargs: commands.append(command) or answer)
    monkeypatch.setattr(dev, "find_python", lambda: "python3.11")
    dev.make(small)
    assert commands[0] == ["python3.11", "-m", "venv", "--clear", str(small.home)]
    assert [command[:4] for command in commands[1:]] == [[str(small.python), "-m", "pip", "install"]] * 2
    assert [command[-1] for command in commands[1:]] == [str(path) for path in small.requirements]
    assert ["--no-deps" in command for command in commands[1:]] == [False, True]


def test_requirements_that_cannot_be_had_end_with_a_sentence(small, monkeypatch):
    answer = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(dev.subprocess, "run", lambda command, **kwargs: answer)
    monkeypatch.setattr(dev, "find_python", lambda: "python3.11")
    with pytest.raises(dev.CannotMake, match="could not be made"):
        dev.environment(small)
    assert not (small.home / "requirements.sha256").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["test", "--only", "core,nonsense"], "got nonsense, expected some of lint"),
        ([], "required"),
        (["nonsense"], "invalid choice"),
    ],
)
def test_bad_arguments_are_refused(argv: list[str], message: str):
    command = [sys.executable, str(dev.ROOT / "dev.py"), *argv]
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert run.returncode != 0
    assert message in run.stderr
    assert "Traceback" not in run.stderr


# --quick


def test_the_quick_run_takes_what_it_names_and_thins_what_takes_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quick, "WHOLE", ("core/",))
    monkeypatch.setattr(quick, "TELLING", ("webui/test_a.py",))
    monkeypatch.setattr(quick, "SLOW", ("core/test_b.py::test_long",))
    core = [f"tests/core/test_b.py::test_it[{i}]" for i in range(9)]
    webui = [f"tests/webui/test_a.py::test_it[{i}]" for i in range(9)]
    others = ["tests/core/test_b.py::test_long[x]", "tests/webui/test_c.py::test_it"]
    assert quick.chosen([*core, *webui, *others]) == [*core, webui[0], webui[4], webui[8]]


def test_what_the_quick_run_names_exists():
    files = [name.partition("::")[0] for name in (*quick.WHOLE, *quick.TELLING, *quick.SLOW)]
    assert [name for name in files if not (dev.TESTS / name).exists()] == []
