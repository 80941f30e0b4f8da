"""The law of the house: only ``lib_ipadapter/webui`` may know the WebUI, rooms import in one direction only,
start-up stays cheap, files and functions stay short."""

from __future__ import annotations

import ast
import functools
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

# The rooms in their order: each may import those before it, inside functions too. "" is the package itself.
ROOMS = (
    "", "errors", "atomic", "cache", "options", "unit", "runs", "pictures", "files", "faces", "encoders", "adapters",
    "attention", "controlnet",
    "prompts", "standalone", "training", "evaluation", "webui", "cli", "__main__",
)  # fmt: skip
# Modules of the portion of this name that Forge ships: none of ours may hide them.
OF_OTHER_PORTIONS = ("IPAdapterPlus", "resampler", "CrossAttentionPatch", "image_proj_models", "utils")

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


def rooms() -> tuple[str, ...]:
    """Every module outside the host's room."""
    found = pkgutil.walk_packages([str(PACKAGE)], "lib_ipadapter.")
    names = ["lib_ipadapter", *(module.name for module in found if not module.name.endswith("__main__"))]
    return tuple(name for name in names if not name.startswith(HOST_ROOM))


@functools.cache
def loaded(names: tuple[str, ...], blocked: tuple[str, ...]) -> set[str]:
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
    assert name in loaded((name,), ("torch", *HOST_PACKAGES, *HEAVY))


def test_no_file_outside_the_hosts_room_names_a_host_package():
    """A function that imports the host lazily would pass the test above."""
    files = files_outside_the_host_room()
    assert len(files) > 50
    named = {path.relative_to(PACKAGE).as_posix(): imports(path) & set(HOST_PACKAGES) for path in files}
    assert {name: packages for name, packages in named.items() if packages} == {}


def test_only_the_hosts_room_is_imported_by_the_entry():
    assert imports(ROOT / "scripts" / "ip_adapter.py") <= {"pathlib", "sys", "lib_ipadapter", "modules"}


def modules() -> dict[str, Path]:
    """The package's modules by their names below it; the package itself is ""."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def import_graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """Which of the modules each module imports anywhere: at its top, inside functions, for types only."""
    return {name: internal_imports(name, path, set(files)) - {name} for name, path in files.items()}


def internal_imports(name: str, path: Path, known: set[str]) -> set[str]:
    """What one module imports of the ``known`` ones."""
    package = ["lib_ipadapter", *filter(None, name.split("."))]
    if path.stem != "__init__":
        package.pop()
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            # "from a import b" imports the module a.b where there is one, else a.
            below = {f"{source}.{alias.name}" for alias in node.names}
            found |= {module if _below(module) in known else source for module in below}
    return {short for module in found if (short := _below(module)) in known and short is not None}


def _below(module: str) -> str | None:
    """A module's name below the package; None for one of another package."""
    root, _, rest = module.partition(".")
    return rest if root == "lib_ipadapter" else None


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import each other, by whatever way round."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            if (name := waiting.pop()) not in seen:
                seen.add(name)
                waiting += graph[name]
        return seen

    reach = {name: reached(name) for name in graph}
    groups = [{other for other in reach[name] if name in reach[other]} for name in graph]
    return [group for i, group in enumerate(groups) if group and group not in groups[:i]]


def test_the_graph_sees_imports_of_every_kind(tmp_path: Path):
    """The control of the two tests below."""
    sources = {
        "a.b": "from . import c\nfrom .d import thing",
        "a.c": "def f():\n    from ..e import thing",
        "a.d": "if TYPE_CHECKING:\n    from lib_ipadapter.a import b",
        "a": "import lib_ipadapter.e",
        "e": "from . import __version__\nimport torch",
        "": "",
    }
    files = {}
    for name, text in sources.items():
        files[name] = tmp_path / (name or "x") / ("__init__.py" if name in ("", "a") else f"{name}.py")
        files[name].parent.mkdir()
        files[name].write_text(text)
    graph = import_graph(files)
    assert graph == {"a.b": {"a.c", "a.d"}, "a.c": {"e"}, "a.d": {"a.b"}, "a": {"e"}, "e": {""}, "": set()}
    assert circles(graph) == [{"a.b", "a.d"}]


def test_no_modules_import_each_other_in_a_circle():
    assert circles(import_graph(modules())) == []


def test_rooms_import_only_the_rooms_before_them():
    graph = import_graph(modules())
    order = {room: place for place, room in enumerate(ROOMS)}
    assert {name.partition(".")[0] for name in graph} <= order.keys(), "a new room needs its place in ROOMS"
    against = {
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if order[other.partition(".")[0]] > order[name.partition(".")[0]]
    }
    assert against == set()


def test_names_of_other_portions_are_free():
    assert [name for name in OF_OTHER_PORTIONS if any(PACKAGE.glob(f"{name}*"))] == []


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_another_portion_of_this_name_is_importable_beside_ours(tmp_path: Path, first: str):
    """Forge's has no ``__init__.py``, and which of the two comes first on the path depends on the extensions' names."""
    portion = tmp_path / "lib_ipadapter"
    portion.mkdir()
    for name in OF_OTHER_PORTIONS:
        (portion / f"{name}.py").write_text(f"ORIGIN = {name!r}")
    code = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1])\n"
        "import importlib, lib_ipadapter.unit\n"
        "from lib_ipadapter import __version__\n"
        "print([importlib.import_module(f'lib_ipadapter.{name}').ORIGIN for name in json.loads(sys.argv[2])])"
    )
    folders = [str(ROOT), str(tmp_path)] if first == "ours" else [str(tmp_path), str(ROOT)]
    command = [sys.executable, "-c", code, json.dumps(folders), json.dumps(OF_OTHER_PORTIONS)]
    run = subprocess.run(command, cwd=tmp_path.parent, capture_output=True, text=True)
    assert run.stdout.strip() == str(list(OF_OTHER_PORTIONS)), run.stderr


def python_files() -> list[Path]:
    """All of the checkout's Python files, environments apart."""
    found = [*ROOT.glob("*.py")]
    for folder in ("lib_ipadapter", "scripts", "examples", "benchmarks", "tests"):
        found += (ROOT / folder).rglob("*.py")
    return sorted(found)


def test_files_stay_short_and_say_what_they_are():
    long, silent = {}, []
    for path in python_files():
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > (350 if path.is_relative_to(PACKAGE) else 400):
            long[name] = lines
        if path.is_relative_to(PACKAGE) and text.strip() and not ast.get_docstring(ast.parse(text)):
            silent.append(name)
    assert long == {}, "split them by concept"
    assert silent == [], "the file's first line says what it is"


def test_functions_stay_short():
    long = {}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    long[f"{path.relative_to(ROOT).as_posix()}: {node.name}"] = lines
    assert long == {}


def test_no_file_of_the_package_needs_a_home():
    """A container's user may have none, and Path.home raises then: os.path.expanduser does not."""
    asked = [path.name for path in PACKAGE.rglob("*.py") if "Path.home(" in path.read_text(encoding="utf-8")]
    assert asked == []


def test_no_file_of_the_package_needs_torch_2_1_for_its_weights():
    """The WebUI installs torch 2.0 for Intel's GPUs; its load_state_dict has no ``assign``, and encoders.state has."""
    asked = [path.name for path in PACKAGE.rglob("*.py") if "assign=True" in path.read_text(encoding="utf-8")]
    assert asked == []
