"""evaluate(): generates missing pictures, measures all, writes table, grid and curve."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import __version__
from ..errors import ConfigError, IPAdapterError, ModelError
from ..pictures import images
from ..unit.names import is_device
from . import figures
from .dreambench import Export
from .items import Item
from .methods import Job, Method
from .metric import Metric
from .options import Options
from .pictures import Pictures, weight_text
from .scores import Extra, References, Scores
from .table import REFERENCE, Results, Row

PACKAGES = ("torch", "open_clip_torch", "pillow", "numpy")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Column:
    """A method at a λ, and who draws it."""

    method: Method
    weight: float | None


@dataclass(frozen=True)
class Further:
    """What a report has beside CLIP's measures. extra: measures by name, of a picture and its reference's Item; NaN
    where one says nothing; told: what each is, for the settings; published: whether values of others stand below the
    table; negative: the negative prompt, where pictures are also written in DreamBench++'s layout, else None."""

    extra: Extra = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    published: bool = False
    negative: str | None = None


@dataclass(frozen=True)
class _Task:
    """A picture of the plan."""

    column: Column
    place: int  # of the reference
    path: Path
    prompt: str
    seed: int
    settings: Mapping[str, Any]


def evaluate(
    items: Sequence[Item],
    methods: Sequence[Method],
    metric: Metric,
    out: Path | str,
    options: Options | None = None,
    extra: Extra | None = None,
    say: Say | None = None,
    further: Further | None = None,
) -> Results:
    """Draws every method at every λ of every reference, measures, and writes into ``out``: pictures/,
    scores.jsonl, results.json, results.md, grid.png, and curve.png if a method has two λ.

    extra: those of ``further``, alone.
    Pictures that are there already stay, if they were made with these settings. Interrupted anywhere, the
    same call goes on. Raises ConfigError, FileError, ImageError, EncoderError, ModelError.
    """
    out, options, say = Path(out), options or Options(), say or _to_stderr
    options.check()
    further = further or Further(extra or {})
    _check(items, methods, further.extra)
    columns = plan_columns(methods, options.weights, say)
    texts = [options.text_against(item) for item in items]
    references = References.look_at(items, texts, metric, further.extra, _bar)
    store = Pictures(out)
    tasks = _plan(items, columns, options, references, store)
    _draw(items, tasks, references, store, options, say)
    if further.negative is not None:
        _export(items, tasks, out / "dreambench", further.negative)
    results = _measure(items, columns, tasks, references, options, metric, further, out, methods)
    results.write(out)
    _figures(items, columns, store, options, results, out, say)
    return results


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _check(items: Sequence[Item], methods: Sequence[Method], extra: Extra) -> None:
    if not items:
        raise ConfigError("references", 0, "at least one reference")
    if not methods:
        raise ConfigError("methods", 0, "at least one method: an adapter, a text baseline or a WebUI's")
    keys = [item.key for item in items]
    if len(set(keys)) < len(keys):
        raise ConfigError("references", len(keys), "a key of its own for each")
    for method in methods:
        count = sum(other.name.casefold() == method.name.casefold() for other in methods)
        plain = re.fullmatch(r"\w([\w.+-]*[\w+-])?", method.name) and not is_device(method.name)
        if count > 1 or method.name == REFERENCE or not plain:
            raise ConfigError(
                "name of a method", method.name, "a folder's name on any system, of letters, digits, . + - _, not "
                                                 "taken by "
                f"another and not {REFERENCE}; "
                "choose one as NAME=FILE",
            )  # fmt: skip
    taken = sorted(Scores.OWN & set(extra))
    if taken:
        raise ConfigError("extra", taken, f"names other than {', '.join(sorted(Scores.OWN))}")


def plan_columns(methods: Sequence[Method], weights: Sequence[float], say: Say = _to_stderr) -> list[Column]:
    """The table's columns of pictures: λ = 0 once for all methods that share it, and first."""
    shared, own = {}, []
    for method in methods:
        able = method.weights(sorted(weights))
        skipped = [weight_text(weight) for weight in weights if weight not in able]
        if skipped and able != [None]:
            say(f"{method.name} cannot draw λ = {', '.join(skipped)}: skipped")
        for weight in able:
            if weight == 0 and method.at_zero is not None:
                shared[method.at_zero.name] = Column(method.at_zero, 0.0)
            else:
                own.append(Column(method, weight))
    columns = [*shared.values(), *(c for c in own if c.weight != 0 or c.method.name not in shared)]
    if not columns:
        raise ConfigError("weights", list(weights), "a λ that a method can draw; the base model alone has only 0")
    return columns


def _plan(
    items: Sequence[Item],
    columns: Sequence[Column],
    options: Options,
    references: References,
    store: Pictures,
) -> list[_Task]:
    """Every picture, by chunks of references, so that one prepared for a method serves all its λ."""
    fixed = [dict(column.method.settings()) for column in columns]
    pairs = [(place, i) for place in range(len(items)) for i in range(options.count)]
    tasks = []
    for chunk in _chunks(pairs, options.batch):
        for column, settings in zip(columns, fixed, strict=True):
            for place, i in chunk:
                item, seed = items[place], options.seed + place * options.count + i
                prompt = column.method.prompt(item, options.text_for(item))
                path = store.path(column.method.name, column.weight, item.key, i)
                own = {
                    "weight": column.weight,
                    "prompt": prompt,
                    "seed": seed,
                    "reference": references.digests[place],
                }
                tasks.append(_Task(column, place, path, prompt, seed, {**settings, **own}))
    return tasks


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _draw(
    items: Sequence[Item],
    tasks: Sequence[_Task],
    references: References,
    store: Pictures,
    options: Options,
    say: Say,
) -> None:
    """Draws and saves what is missing. Settings are checked for all before anything is drawn."""
    missing = [task for task in tasks if not store.has(task.path, task.settings)]
    done = len(tasks) - len(missing)
    loaded: dict[int, Image.Image] = {}
    try:
        with _bar(len(tasks), "pictures", done) as bar:
            for batch in _batches(missing, options.batch):
                places = {task.place for task in batch}
                loaded = {place: loaded.get(place) or items[place].load() for place in places}
                jobs = [_job(task, items, loaded, references) for task in batch]
                for task, picture in zip(batch, batch[0].column.method.draw(jobs), strict=True):
                    store.save(task.path, picture, task.settings)
                    done += 1
                    bar.update()
    except (KeyboardInterrupt, IPAdapterError):
        say(f"stopped: {done} of {len(tasks)} pictures are in {store.folder}; start it again to go on")
        raise


def _job(task: _Task, items: Sequence[Item], loaded: Mapping[int, Image.Image], references: References) -> Job:
    place = task.place
    weight = task.column.weight
    return Job(items[place], loaded[place], references.digests[place], task.prompt, weight, task.seed)


def _batches(tasks: Sequence[_Task], size: int) -> Iterator[list[_Task]]:
    """Neighbours of one column, at most ``size`` of them."""
    batch: list[_Task] = []
    for task in tasks:
        if batch and (task.column is not batch[0].column or len(batch) == size):
            yield batch
            batch = []
        batch.append(task)
    if batch:
        yield batch


def _bar(total: int, name: str, done: int = 0) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc=name, unit="picture", file=sys.stderr)


def _measure(
    items: Sequence[Item], columns: Sequence[Column], tasks: Sequence[_Task], references: References, options: Options,
    metric: Metric, further: Further, out: Path, methods: Sequence[Method],
) -> Results:  # fmt: skip
    scores = Scores(items, references, metric, further.extra)
    rows = [Row.of(REFERENCE, None, references.measured, len(items))]
    with _bar(len(tasks), "measuring") as bar:
        for column in columns:
            own = [task for task in tasks if task.column is column]
            for chunk in _chunks(own, 32):
                pictures = [images.load(task.path) for task in chunk]
                places, seeds = [task.place for task in chunk], [task.seed for task in chunk]
                scores.add(column.method.name, column.weight, places, pictures, seeds)
                bar.update(len(chunk))
            rows.append(Row.of(column.method.name, column.weight, scores.values(), len(own)))
    scores.write(out / "scores.jsonl")
    at_zero = {m.name: m.at_zero.name for m in methods if m.at_zero is not None}
    settings = _settings(items, columns, options, metric)
    told = {"measures": further.told} if further.told else {}
    return Results(tuple(rows), {**settings, **told}, at_zero, further.published)


def _export(items: Sequence[Item], tasks: Sequence[_Task], folder: Path, negative: str) -> None:
    """The pictures in DreamBench++'s layout, a folder for each method and weight."""
    exports: dict[Path, Export] = {}
    for task in tasks:
        own = folder / f"{task.column.method.name}-{weight_text(task.column.weight)}"
        if own not in exports:
            exports[own] = Export(own, negative)
        export = exports[own]
        item = items[task.place]
        index = int(task.path.stem.rpartition("-")[2])
        export.add(item.key, item.fields, index, task.prompt, item.load(), images.load(task.path))


def _settings(items: Sequence[Item], columns: Sequence[Column], options: Options, metric: Metric) -> dict[str, Any]:
    """The settings of a run, for results.json."""
    text = "the caption" if options.prompt in ("caption", "none") else "the prompt's template, filled in"
    return {
        "references": len(items), "pictures a reference": options.count, "seed": options.seed, "prompt": options.prompt,
        "text": text, "batch": options.batch, "metric": metric.settings(),
        "methods": {column.method.name: dict(column.method.settings()) for column in columns},
        "versions": {"lib_ipadapter": __version__, "python": platform.python_version(), **_versions()},
    }  # fmt: skip


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = torch.__version__ if name == "torch" else version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _figures(
    items: Sequence[Item], columns: Sequence[Column], store: Pictures, options: Options, results: Results, out: Path,
    say: Say,
) -> None:  # fmt: skip
    """grid.png and curve.png."""

    def path_of(column: int, row: int) -> Path:
        return store.path(columns[column].method.name, columns[column].weight, items[row].key, 0)

    figures.grid(items[: options.rows], [(c.method.name, c.weight) for c in columns], path_of, out / "grid.png")
    try:
        if not figures.curve(results, out / "curve.png"):
            (out / "curve.png").unlink(missing_ok=True)  # of an earlier sweep into the same folder
    except ModelError as error:
        say(f"curve.png was not drawn: {error}")
