#!/usr/bin/env python3
"""Set-up and checks, with the standard library only.

    python3 dev.py test [--only lint,core,...]   makes its environment and runs all checks
    python3 dev.py demo [--out FILE]             draws one picture that explains the extension
    python3 dev.py env                           makes the environment only, and prints its Python

The environment (.venv-dev, or $IPADAPTER_DEV_ENV) has the WebUI's own pins from PyPI and needs Python
3.10 or 3.11. Suites that this machine cannot run are skipped, with the reason.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = [ROOT / "tests" / "requirements.txt", ROOT / "tests" / "requirements-nodeps.txt"]
PYTHONS = ((3, 10), (3, 11))
# lint and types are commands; the others are folders of tests.
SUITES = ("lint", "types", "core", "ldm", "parity", "webui", "browser")
COUNTS = re.compile(r"(\d+) (passed|failed|skipped|error)")


@dataclass
class Result:
    """What a suite came to."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)


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
        asked = subprocess.run(
            [*command, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True
        )
        if asked.returncode == 0:
            return asked.stdout.strip()
    raise SystemExit(
        f"dev.py needs Python 3.10 or 3.11 (this is {sys.version.split()[0]}), the versions that the WebUI's pins "
        "install on. Install one of them and run this again with it"
    )


def make(home: Path, python: Path) -> None:
    """An empty environment in ``home`` with the requirements in it; an old environment there is replaced."""
    if home.is_dir() and any(home.iterdir()) and not (home / "pyvenv.cfg").is_file():
        raise SystemExit(
            f"{home} holds other things than an environment: set IPADAPTER_DEV_ENV to another folder"
        )
    print(f"making the environment in {home} (a few minutes, some gigabytes)", flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    commands = (
        [find_python(), "-m", "venv", "--clear", str(home)],
        [*pip, "-r", str(REQUIREMENTS[0])],
        [*pip, "--no-deps", "-r", str(REQUIREMENTS[1])],
    )
    for command in commands:
        if subprocess.run(command).returncode:
            raise SystemExit(f"the environment could not be made: {' '.join(command)} failed, see above")


def environment() -> Path:
    """The environment's Python, made and filled when it is not there or the requirements changed."""
    home = Path(os.environ.get("IPADAPTER_DEV_ENV", ROOT / ".venv-dev")).absolute()
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = home / "requirements.sha256"
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in REQUIREMENTS)).hexdigest()
    if not (python.is_file() and stamp.is_file() and stamp.read_text() == wanted):
        make(home, python)
        stamp.write_text(wanted)
    return python


def browser() -> str | None:
    """The Chromium that the browser suite drives; in CI on Debian it is installed when missing."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)
    if (
        not found
        and os.environ.get("CI")
        and shutil.which("apt-get")
        and getattr(os, "geteuid", lambda: 1)() == 0
    ):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(["apt-get", "update"], **quiet, check=False)
        subprocess.run(["apt-get", "install", "-y", "chromium"], **quiet, check=False)
        found = shutil.which("chromium")
    return found


def run_command(name: str, commands: list[list[str]]) -> Result:
    """Commands of which each passes or fails as a whole."""
    result, start = Result(name), time.monotonic()
    for command in commands:
        good = subprocess.run(command, cwd=ROOT).returncode == 0
        result.passed += good
        result.failed += not good
    result.seconds = time.monotonic() - start
    return result


def run_tests(name: str, python: Path) -> Result:
    """One folder of tests, in a process of its own."""
    result, start = Result(name), time.monotonic()
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if name == "browser" and (chromium := browser()):
        env["CHROMIUM"] = chromium
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-rfEs",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests" / name),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, errors="replace"
    )
    lines: list[str] = []
    for line in process.stdout or ():
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    code = process.wait()
    counts = {kind: int(number) for number, kind in COUNTS.findall(lines[-1] if lines else "")}
    result.passed, result.skipped = counts.get("passed", 0), counts.get("skipped", 0)
    result.failed = counts.get("failed", 0) + counts.get("error", 0)
    result.reasons = [line for line in lines if line.startswith("SKIPPED")]
    # 5: no test was collected. Any other code than 0 without a counted failure is a failure too.
    if code not in (0, 5) and not result.failed:
        result.failed = 1
    result.seconds = time.monotonic() - start
    return result


def run_suite(name: str, python: Path) -> Result:
    """One suite, with a heading."""
    print(f"\n== {name}", flush=True)
    if name == "lint":
        return run_command(
            name,
            [[str(python), "-m", "ruff", *args] for args in (["check", "."], ["format", "--check", "."])],
        )
    if name == "types":
        return run_command(name, [[str(python), "-m", "mypy"]])
    return run_tests(name, python)


def report(results: list[Result]) -> int:
    """A table, the reasons of what was skipped, and a closing line; 1 when anything failed."""
    print("\n| suite | passed | failed | skipped | seconds |\n|---|---|---|---|---|")
    for r in results:
        print(f"| {r.name} | {r.passed} | {r.failed} | {r.skipped} | {r.seconds:.0f} |")
    for reason in [reason for r in results for reason in r.reasons]:
        print(reason)
    passed, failed, skipped = (
        sum(getattr(r, kind) for r in results) for kind in ("passed", "failed", "skipped")
    )
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


def test(args: argparse.Namespace) -> int:
    chosen = args.only.split(",") if args.only else list(SUITES)
    unknown = [name for name in chosen if name not in SUITES]
    if unknown:
        raise SystemExit(f"--only: got {', '.join(unknown)}, expected some of {', '.join(SUITES)}")
    python = environment()
    return report([run_suite(name, python) for name in SUITES if name in chosen])


def demo(args: argparse.Namespace) -> int:
    command = [str(environment()), "-m", "examples.small_world.demo", "--out", str(Path(args.out).absolute())]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=env).returncode


def make_environment(args: argparse.Namespace) -> int:
    print(environment())
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("test", help="run all checks")
    command.add_argument("--only", help=f"comma-separated: {', '.join(SUITES)}")
    command.set_defaults(run=test)
    command = commands.add_parser("demo", help="draw one picture that explains the extension")
    command.add_argument("--out", default=str(ROOT / "outputs" / "demo.png"), help="where to save it")
    command.set_defaults(run=demo)
    commands.add_parser("env", help="make the environment").set_defaults(run=make_environment)
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
