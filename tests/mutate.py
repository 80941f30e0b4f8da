#!/usr/bin/env python3
"""Mutation testing: changes one thing in a module, runs the tests that should notice, and reports what they missed.

    python -m tests.mutate                                      a sample of every target
    python -m tests.mutate attention/rows unit/weights --count 40
    python -m tests.mutate lib_ipadapter/cache.py --tests tests/core/test_cache.py
    python -m tests.mutate --list

The tests run on a copy of the checkout, each mutant in a fork of one process that has torch loaded (POSIX only).
Mutants are sampled by ``--seed``, the same ones each time. A mutant that no test can tell from the original
(equivalent) survives like any other: survivors are read by people.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "lib_ipadapter"

# Module below the package: patterns of the tests that should notice a change in it.
TARGETS: dict[str, tuple[str, ...]] = {
    "attention/term": ("core/test_weights.py", "core/test_scaling.py", "core/test_hook*.py", "core/test_seeing.py"),
    "attention/rows": ("core/test_rows.py", "core/test_traced.py", "core/test_session.py"),
    "attention/traced": ("core/test_traced.py",),
    "attention/session": (
        "core/test_session.py", "core/test_hook*.py", "core/test_in_turn.py", "core/test_traced.py", "core/test_run.py",
        "core/test_scaling.py", "core/test_weights.py", "core/test_seeing.py", "core/test_masks.py",
    ),
    "attention/keyvalue": (
        "core/test_session.py", "core/test_hook*.py", "core/test_in_turn.py", "core/test_scaling.py",
        "core/test_weights.py",
    ),
    "attention/region": ("core/test_masks.py", "core/test_hook*.py", "core/test_honoured.py"),
    "attention/hooks": ("core/test_hook*.py", "core/test_session.py", "core/test_seeing.py"),
    "attention/layers": ("core/test_layers.py", "core/test_weights.py", "core/test_session.py"),
    "unit/weights": ("core/test_weights.py",),
    "training/objective": (
        "core/test_training_objective.py", "core/test_training_draws.py", "ldm/test_training.py",
    ),
    "training/trainer": ("core/test_training_draws.py", "ldm/test_training.py", "ldm/test_training_runs.py"),
    "training/adapter": ("ldm/test_training.py", "ldm/test_training_runs.py"),
    "evaluation/scores": ("core/test_evaluation_stats.py", "core/test_evaluation.py", "core/test_evaluation_clip.py"),
    "evaluation/stats": ("core/test_evaluation_stats.py",),
}  # fmt: skip

# Operators as they are written, and what each becomes.
SIGNS: dict[type, tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
}  # fmt: skip
OTHER_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}
# Methods that return their own object in another form: dropping the call leaves the object as it was.
CONVERSIONS = (
    "float",
    "to",
    "clone",
    "detach",
    "contiguous",
    "sqrt",
    "abs",
    "transpose",
    "clamp",
    "requires_grad_",
)


@dataclass(frozen=True)
class Mutant:
    """One change of a file: ``source[start:end]``, in bytes, becomes ``text``."""

    kind: str
    start: int
    end: int
    text: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]


class Mutants(ast.NodeVisitor):
    """Collects the mutants of a file. Annotations, docstrings and the texts of errors are left alone."""

    def __init__(self, source: bytes) -> None:
        self.found: list[Mutant] = []
        self._source = source
        self._lines = [0]
        for line in source.split(b"\n"):
            self._lines.append(self._lines[-1] + len(line) + 1)
        self.visit(ast.parse(source))

    def _span(self, node: ast.AST) -> tuple[int, int]:
        begin, end = self._lines[node.lineno - 1], self._lines[node.end_lineno - 1]  # type: ignore[attr-defined]
        return begin + node.col_offset, end + node.end_col_offset  # type: ignore[attr-defined]

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._source[start:end].decode()

    def _add(self, kind: str, node: ast.AST, text: str) -> None:
        self.found.append(Mutant(kind, *self._span(node), text))

    def _add_operator(self, kind: str, op: ast.AST, left: ast.AST, right: ast.AST) -> None:
        """Only what stands between the operands is changed, so that parentheses stay."""
        if type(op) not in SIGNS:
            return
        sign, other = SIGNS[type(op)]
        start = self._source.index(sign.encode(), self._span(left)[1], self._span(right)[0])
        self.found.append(Mutant(kind, start, start + len(sign), other))

    # what is left alone

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add("drop raise", node, "pass")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass  # before Python 3.12 the parts of an f-string have no positions

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            self.visit(part)

    # statements

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        if isinstance(node.value, ast.Call):
            self._add("drop statement", node, "pass")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets):
            self._add("drop statement", node, "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add("drop statement", node, "pass")
        self._add_operator("operator", node.op, node.target, node.value)
        self.generic_visit(node)

    def visit_Continue(self, node: ast.Continue | ast.Break) -> None:
        self._add("drop statement", node, "pass")

    visit_Break = visit_Continue

    def visit_If(self, node: ast.If | ast.While | ast.IfExp) -> None:
        # The one comparison of a condition is swapped anyway.
        if not (
            isinstance(node.test, ast.Compare) and type(node.test.ops[0]) not in (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
        ):
            self._add("negate", node.test, f"(not ({self._text(node.test)}))")
        self.generic_visit(node)

    visit_While = visit_IfExp = visit_If

    # expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for op, left, right in zip(node.ops, operands[:-1], operands[1:], strict=True):
            self._add_operator("comparison", op, left, right)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._add_operator("operator", node.op, node.left, node.right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = f" {SIGNS[type(node.op)][1]} "
        self._add("operator", node, "(" + other.join(f"({self._text(v)})" for v in node.values) + ")")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.Not, ast.USub)):
            self._add("operator", node, f"({self._text(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._add("constant", node, str(not value))
        elif isinstance(value, (int, float)):
            for other in (value + 1, value - 1):
                self._add("constant", node, f"({other!r})" if other < 0 else repr(other))
        elif isinstance(value, str) and value and value.count(" ") < 3:  # longer ones are read by people
            self._add("constant", node, repr(value + "?"))

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func
        if isinstance(name, ast.Name) and name.id in OTHER_NAMES:
            self._add("function", name, OTHER_NAMES[name.id])
        elif isinstance(name, ast.Attribute):
            if name.attr in CONVERSIONS:
                self._add("drop call", node, f"({self._text(name.value)})")
            if name.attr in OTHER_NAMES:
                self._add("function", name, f"({self._text(name.value)}).{OTHER_NAMES[name.attr]}")
        symmetric = getattr(name, "id", getattr(name, "attr", "")) in ("min", "max", "minimum", "maximum")
        if len(node.args) == 2 and not symmetric and not any(isinstance(arg, ast.Starred) for arg in node.args):
            first, second = node.args
            between = self._source[self._span(first)[1] : self._span(second)[0]].decode()
            text = self._text(second) + between + self._text(first)
            self.found.append(Mutant("swap arguments", self._span(first)[0], self._span(second)[1], text))
        self.generic_visit(node)


def mutants(source: bytes) -> list[Mutant]:
    """All mutants of a file that compile, each once, in the order of the file."""
    unique = {(m.start, m.end, m.text): m for m in Mutants(source).found}
    return [m for _, m in sorted(unique.items()) if _compiles(m.apply(source))]


def _compiles(source: bytes) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def sample(found: list[Mutant], count: int, seed: str) -> list[Mutant]:
    """``count`` of the mutants, or all, in the order of the file."""
    chosen = random.Random(seed).sample(range(len(found)), min(count, len(found)))
    return [found[i] for i in sorted(chosen)]


# running


def copy_checkout(home: Path) -> None:
    """The package and the tests, copied; everything else of the checkout, linked."""
    left_out = shutil.ignore_patterns("__pycache__")
    for entry in ROOT.iterdir():
        if entry.name in (PACKAGE, "tests"):
            shutil.copytree(entry, home / entry.name, ignore=left_out)
        elif not entry.name.startswith(".") and entry.name not in ("outputs", "runs"):
            (home / entry.name).symlink_to(entry)


def preload() -> None:
    """Imports what every run needs, so that its forks do not."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401
    import pytest  # noqa: F401
    import torch  # noqa: F401


def run_tests(home: Path, tests: list[str], timeout: float) -> str:
    """ "passed", "failed" or "timeout", of these tests in a fork."""
    child = os.fork()
    if child == 0:
        os.setsid()
        _run_pytest(home, tests)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "passed" if os.waitstatus_to_exitcode(status) == 0 else "failed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def _run_pytest(home: Path, tests: list[str]) -> None:
    """Runs the tests in this process, in silence, and ends it with pytest's exit code."""
    import pytest

    code = 70
    try:
        os.chdir(home)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        sys.path[:] = [str(home), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
        for name in [n for n in sys.modules if n.split(".")[0] in (PACKAGE, "tests")]:
            del sys.modules[name]
        code = int(pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests]))
    finally:
        os._exit(code)


@dataclass
class Counts:
    tried: int = 0
    killed: int = 0


def tests_of(patterns: tuple[str, ...]) -> list[str]:
    """The files that the patterns name, below tests/, each once."""
    found = [str(p.relative_to(ROOT)) for pattern in patterns for p in sorted((ROOT / "tests").glob(pattern))]
    return list(dict.fromkeys(found))


def describe(path: Path, source: bytes, mutant: Mutant) -> Iterator[str]:
    """The changed lines of a mutant."""
    old, new = source.decode().splitlines(), mutant.apply(source).decode().splitlines()
    yield f"{path.relative_to(ROOT)}:{source[: mutant.start].count(10) + 1}: {mutant.kind}"
    for line in list(difflib.unified_diff(old, new, lineterm="", n=0))[2:]:
        if not line.startswith("@@"):
            yield f"    {line[0]} {line[1:].strip()}"


def run_target(home: Path, path: Path, tests: list[str], args: argparse.Namespace, deadline: float) -> Counts:
    """Tries a sample of one file's mutants and prints each."""
    counts, source = Counts(), path.read_bytes()
    copied = home / path.relative_to(ROOT)
    start = time.monotonic()
    if run_tests(home, tests, 1800) != "passed":
        print(f"{path.relative_to(ROOT)}: its tests fail without a mutant: {' '.join(tests)}", flush=True)
        return counts
    timeout = 20 + 3 * (time.monotonic() - start)
    found = mutants(source)
    chosen = sample(found, args.count, f"{args.seed} {path.relative_to(ROOT)}")
    print(
        f"\n== {path.relative_to(ROOT)}: {len(chosen)} of {len(found)} mutants, {', '.join(tests)}",
        flush=True,
    )
    for mutant in chosen:
        if time.monotonic() > deadline:
            print(f"stopped after {args.minutes} minutes: {counts.tried} of {len(chosen)} tried")
            break
        copied.write_bytes(mutant.apply(source))
        outcome = run_tests(home, tests, timeout)
        counts.tried += 1
        counts.killed += outcome != "passed"
        if outcome == "passed" or args.verbose:
            said = {"passed": "SURVIVED", "failed": "killed", "timeout": "killed (timeout)"}[outcome]
            print(said, *describe(path, source, mutant), sep="\n", flush=True)
    copied.write_bytes(source)
    print(f"{path.relative_to(ROOT)}: {counts.killed} killed of {counts.tried} tried", flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="targets of the table, or files; all targets when none is given")
    parser.add_argument("--tests", nargs="+", help="the tests to run, instead of the table's")
    parser.add_argument("--count", type=int, default=20, help="mutants per file (default: %(default)s)")
    parser.add_argument("--seed", default="0", help="chooses the sample (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60, help="stop after (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="print the mutants that were killed too")
    parser.add_argument("--list", action="store_true", help="print the targets with their numbers of mutants")
    args = parser.parse_args()
    jobs = []
    for name in args.targets or TARGETS:
        path = (ROOT / PACKAGE / f"{name}.py") if name in TARGETS else (ROOT / name).absolute()
        tests = args.tests or tests_of(TARGETS.get(name, ()))
        if not path.is_file() or not tests:
            raise SystemExit(f"{name}: expected one of {', '.join(TARGETS)}, or a file together with --tests")
        jobs.append((path, tests))
    if args.list:
        for path, tests in jobs:
            print(f"{path.relative_to(ROOT)}: {len(mutants(path.read_bytes()))} mutants; {', '.join(tests)}")
        return 0
    deadline = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        copy_checkout(Path(folder))
        preload()
        results = [run_target(Path(folder), path, tests, args, deadline) for path, tests in jobs]
    print(f"\n{sum(r.killed for r in results)} killed of {sum(r.tried for r in results)} tried")
    return 0


if __name__ == "__main__":
    sys.exit(main())
