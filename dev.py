#!/usr/bin/env python3
"""Set-up and checks, with the standard library only.

    python3 dev.py test                          makes its environments and runs all checks
    python3 dev.py test --quick                  lint, types and the tests that tell the most (minutes)
    python3 dev.py test --only lint,core,...     some of the suites; "forks" runs in no other way
    python3 dev.py demo [--out FILE]             draws one picture that explains the extension
    python3 dev.py env                           makes the environment only, and prints its Python

The environment (.venv-dev, or $IPADAPTER_DEV_ENV) has the WebUI's own pins from PyPI and needs Python
3.10 or 3.11. The suite "current" has one of its own (.venv-current, or $IPADAPTER_CURRENT_ENV) with current
releases of torch, open_clip and diffusers; it is made in CI, or by --only current. Suites that this machine
cannot run are skipped, with the reason.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import hashlib
import operator
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TESTS = ROOT / "tests"
PYTHONS = ((3, 10), (3, 11))
# lint and types are commands; the others run tests.
SUITES = ("lint", "types", "core", "ldm", "parity", "webui", "browser", "current", "forks")
# Several suites run at once; those that take longest begin first, and the longest in parts.
ORDER = ("webui", "browser", "ldm", "core", "parity", "current", "forks", "types", "lint")
PARTS = {"webui": 2, "browser": 2, "ldm": 2}
QUICK = ("lint", "types", "core", "ldm", "parity", "webui")
# What the suite "current" runs: what depends on torch's, open_clip's and diffusers' releases.
CURRENT = (
    "core/test_adapter_files.py", "core/test_encoders.py", "core/test_layers.py", "core/test_session.py",
    "core/test_small_world.py", "core/test_timm_encoders.py", "core/test_weights.py",
    "core/test_text_towers.py", "parity/test_projection_parity.py", "parity/test_unet_parity.py",
)  # fmt: skip
# Tests of the suite "forks", which lie beside those of the WebUI and of its page that they repeat.
FORKS = "test_forks*.py"
# One more than there are cores, as a test of the WebUI waits for it a third of the time; each with this much memory.
GIBIBYTES_EACH = 7
COUNTS = re.compile(r"(\d+) (passed|failed|skipped|error)")


@dataclass(frozen=True)
class Environment:
    """A virtual environment. Requirements of files named ``...-nodeps.txt`` are installed without theirs."""

    folder: str
    variable: str
    requirements: tuple[Path, ...]

    @property
    def home(self) -> Path:
        return Path(os.environ.get(self.variable, ROOT / self.folder)).absolute()

    @property
    def python(self) -> Path:
        return self.home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


DEV = Environment(".venv-dev", "IPADAPTER_DEV_ENV", (TESTS / "requirements.txt", TESTS / "requirements-nodeps.txt"))
NOW = Environment(
    ".venv-current",
    "IPADAPTER_CURRENT_ENV",
    (TESTS / "requirements-current.txt", TESTS / "requirements-current-nodeps.txt"),
)


class CannotMake(Exception):
    """An environment cannot be made; says why."""


@dataclass
class Result:
    """The outcome of a suite, or of a part of one. Parts add up."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __add__(self, other: Result) -> Result:
        return Result(
            self.name,
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.seconds + other.seconds,
            self.reasons + other.reasons,
            self.failures + other.failures,
        )


def candidates() -> list[list[str]]:
    """Commands that may be a Python of the right version, the newest first; pyenv's are rarely on the PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = []
    for major, minor in reversed(PYTHONS):
        found += [[f"python{major}.{minor}"], ["py", f"-{major}.{minor}"]]
        found += [[str(path)] for path in sorted(pyenv.glob(f"{major}.{minor}.*/bin/python"))]
    return [command for command in found if shutil.which(command[0])]


def find_python() -> str:
    """A Python of the right version: this one, or one found on this machine."""
    if sys.version_info[:2] in PYTHONS:
        return sys.executable
    for command in candidates():
        asked = subprocess.run([*command, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
        if asked.returncode == 0:
            return asked.stdout.strip()
    raise SystemExit(
        f"dev.py needs Python 3.10 or 3.11 (this is {sys.version.split()[0]}), the versions that the WebUI's pins "
        "install on. Install one of them and run this again with it"
    )


def make(env: Environment) -> None:
    """An empty environment with its requirements in it; an old one in its place is replaced. Raises CannotMake."""
    if env.home.is_dir() and any(env.home.iterdir()) and not (env.home / "pyvenv.cfg").is_file():
        raise CannotMake(f"{env.home} holds other things than an environment: set {env.variable} to another folder")
    print(f"making the environment in {env.home} (a few minutes, some gigabytes)", flush=True)
    pip = [str(env.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    commands = [[find_python(), "-m", "venv", "--clear", str(env.home)]]
    for path in env.requirements:
        alone = ["--no-deps"] if path.stem.endswith("-nodeps") else []
        commands.append([*pip, *alone, "-r", str(path)])
    for command in commands:
        if subprocess.run(command).returncode:
            raise CannotMake(f"the environment could not be made: {' '.join(command)} failed, see above")


def environment(env: Environment = DEV) -> Path:
    """The environment's Python; the environment is made when it is missing or its requirements changed.
    Raises CannotMake."""
    stamp = env.home / "requirements.sha256"
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in env.requirements)).hexdigest()
    if not (env.python.is_file() and stamp.is_file() and stamp.read_text() == wanted):
        make(env)
        stamp.write_text(wanted)
    return env.python


def browser() -> str | None:
    """The Chromium that the browser suite drives; in CI on Debian it is installed when missing."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)
    if not found and os.environ.get("CI") and shutil.which("apt-get") and getattr(os, "geteuid", lambda: 1)() == 0:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(["apt-get", "update"], **quiet, check=False)
        subprocess.run(["apt-get", "install", "-y", "chromium"], **quiet, check=False)
        found = shutil.which("chromium")
    return found


def run_command(name: str, commands: list[list[str]], shown: str = "") -> Result:
    """Commands of which each passes or fails as a whole."""
    result, start = Result(name), time.monotonic()
    for command in commands:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        echo(process, shown)
        good = process.wait() == 0
        result.passed += good
        result.failed += not good
    result.seconds = time.monotonic() - start
    return result


def echo(process: subprocess.Popen[str], shown: str) -> list[str]:
    """Prints what a process prints, each line behind ``shown``, and returns the lines."""
    lines: list[str] = []
    for line in process.stdout or ():
        lines.append(line.rstrip())
        print(f"{shown}{lines[-1]}", flush=True)
    return lines


def run_tests(
    name: str, python: Path, tests: tuple[str, ...] = (), options: tuple[str, ...] = (), shown: str = ""
) -> Result:
    """Tests in a process of their own: those of the folder ``name``, or some files of the tests' folder."""
    result, start = Result(name), time.monotonic()
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if shown:  # another suite runs beside this one: each has one core
        env = {**env, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if name == "browser" and (chromium := browser()):
        env["CHROMIUM"] = chromium
    paths = [str(ROOT / "tests" / test) for test in tests or (name,)]
    command = [str(python), "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", *options, *paths]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines = echo(process, shown)
    code = process.wait()
    counts = {kind: int(number) for number, kind in COUNTS.findall(lines[-1] if lines else "")}
    result.passed, result.skipped = counts.get("passed", 0), counts.get("skipped", 0)
    result.failed = counts.get("failed", 0) + counts.get("error", 0)
    result.reasons = [line for line in lines if line.startswith("SKIPPED")]
    result.failures = [line for line in lines if re.match(r"(FAILED|ERROR) \S", line)]
    # 5: no test was collected. Any other code than 0 without a counted failure is a failure too.
    if code not in (0, 5) and not result.failed:
        result.failed = 1
    result.seconds = time.monotonic() - start
    return result


def run_suite(
    name: str, python: Path, quick: bool = False, shown: str = "", wanted: bool = False, part: tuple[int, int] = (0, 1)
) -> Result:
    """One suite, with a heading; ``shown`` stands before its lines when others run beside it; ``wanted``: it was asked
    for by name; ``part``: which of how many parts of it."""
    print(f"\n== {name}" + (f", part {part[0] + 1} of {part[1]}" if part[1] > 1 else ""), flush=True)
    if name == "lint":
        commands = [[str(python), "-m", "ruff", *args] for args in (["check", "."], ["format", "--check", "."])]
        return run_command(name, commands, shown)
    if name == "types":
        return run_command(name, [[str(python), "-m", "mypy"]], shown)
    options = ("--quick",) if quick else ()
    if name == "forks":
        if not wanted:
            reason = "an hour and 20 GB, as forks only know models of real shapes: dev.py test --only forks runs it"
            return Result(name, skipped=1, reasons=[f"SKIPPED {name}: {reason}"])
        return run_tests(name, python, files(f"*/{FORKS}"), options, shown)
    if name == "current":
        if not wanted and not os.environ.get("CI") and not NOW.python.is_file():
            reason = "its environment is not made (some gigabytes): dev.py test --only current makes it"
            return Result(name, skipped=1, reasons=[f"SKIPPED {name}: {reason}"])
        try:
            plugin = ("-p", "tests.cpu_torchvision")
            return run_tests(name, environment(NOW), CURRENT, (*options, *plugin), shown)
        except CannotMake as error:
            return Result(name, skipped=1, reasons=[f"SKIPPED {name}: {error}"])
    return run_tests(name, python, files_of(name, part), options, shown)


def files(pattern: str) -> tuple[str, ...]:
    """Files below the tests' folder, sorted."""
    return tuple(path.relative_to(TESTS).as_posix() for path in sorted(TESTS.glob(pattern)))


def files_of(name: str, part: tuple[int, int] = (0, 1)) -> tuple[str, ...]:
    """A suite's files, without those of the suite "forks", or one of so many parts of them. Neighbours stay together,
    as they share what they start."""
    own = [path for path in files(f"{name}/test_*.py") if not Path(path).match(FORKS)]
    index, parts = part
    return tuple(own[len(own) * index // parts : len(own) * (index + 1) // parts])


def at_once() -> int:
    """How many suites run at once, by cores and memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1
    return max(1, min((os.cpu_count() or 1) + 1, memory // (GIBIBYTES_EACH << 30)))


def run_suites(chosen: list[str], python: Path, quick: bool, wanted: bool = False) -> list[Result]:
    """The suites' results, in the order of SUITES."""
    lanes = at_once()
    if lanes < 2 or len(chosen) < 2:
        return [run_suite(name, python, quick, "", wanted) for name in SUITES if name in chosen]
    waiting = [name for name in ORDER if name in chosen]
    width = max(map(len, chosen)) + 2
    running: dict[str, list[concurrent.futures.Future[Result]]] = {}
    with concurrent.futures.ThreadPoolExecutor(lanes) as pool:
        for name in waiting:
            parts = 1 if quick else PARTS.get(name, 1)
            running[name] = []
            for index in range(parts):
                said = name if parts == 1 else f"{name} {index + 1}"
                shown = f"{said:{width}} | "
                running[name].append(pool.submit(run_suite, name, python, quick, shown, wanted, (index, parts)))
        results = {name: [future.result() for future in futures] for name, futures in running.items()}
    return [functools.reduce(operator.add, results[name]) for name in SUITES if name in chosen]


def report(results: list[Result], seconds: float) -> int:
    """A table, the reasons of what was skipped, what failed, and a closing line; 1 when anything failed."""
    print("\n| suite | passed | failed | skipped | seconds |\n|---|---|---|---|---|")
    for r in results:
        print(f"| {r.name} | {r.passed} | {r.failed} | {r.skipped} | {r.seconds:.0f} |")
    for line in [line for r in results for line in r.reasons] + [line for r in results for line in r.failures]:
        print(line)
    passed, failed, skipped = (sum(getattr(r, kind) for r in results) for kind in ("passed", "failed", "skipped"))
    print(f"all suites: {seconds:.0f} seconds")
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


def test(args: argparse.Namespace) -> int:
    chosen = args.only.split(",") if args.only else list(QUICK if args.quick else SUITES)
    unknown = [name for name in chosen if name not in SUITES]
    if unknown:
        raise SystemExit(f"--only: got {', '.join(unknown)}, expected some of {', '.join(SUITES)}")
    python, start = environment(), time.monotonic()
    results = run_suites(chosen, python, args.quick, bool(args.only))
    return report(results, time.monotonic() - start)


def demo(args: argparse.Namespace) -> int:
    command = [str(environment()), "-m", "examples.small_world.demo", "--out", str(Path(args.out).absolute())]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=env).returncode


def make_environment(args: argparse.Namespace) -> int:
    print(environment())
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("test", help="run all checks")
    command.add_argument("--only", help=f"comma-separated: {', '.join(SUITES)}")
    command.add_argument("--quick", action="store_true", help="what tells the most in a few minutes")
    command.set_defaults(run=test)
    command = commands.add_parser("demo", help="draw one picture that explains the extension")
    command.add_argument("--out", default=str(ROOT / "outputs" / "demo.png"), help="where to save it")
    command.set_defaults(run=demo)
    commands.add_parser("env", help="make the environment").set_defaults(run=make_environment)
    args = parser.parse_args()
    try:
        return args.run(args)
    except CannotMake as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
