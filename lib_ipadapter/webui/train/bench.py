"""What can be measured here, and the evaluations below the folder of adapters."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...adapters.variant import VariantSpec
from ...attention.layers import Layer, check_fit
from ...encoders.recognise import Recognised
from ...errors import IPAdapterError, TrainingError, UnitError, WrongBase
from ...evaluation.items import read_items
from ...evaluation.judges import arch_of
from ...evaluation.methods import BASE, TEXT
from ...evaluation.runs.evaluations import Evaluations
from ...evaluation.runs.report import Report
from ...evaluation.runs.state import EvaluationState
from ...evaluation.table import REFERENCE
from ...runs.yaml_text import fields_of, text_of
from ...training.runs.look import check_count
from ...unit.names import checked_name, is_device
from ..passes import layers_in
from .place import Place, family, shapes_of
from .texts import NO_JUDGE

WEIGHTS = "0, 0.25, 0.5, 0.75, 1"
_OTHERS = ("webui", "payload", "method_json", "text_baseline")  # methods that need no adapter
_SECONDS = 20.0  # for a first look at the references


class Bench(Place):
    """What the Evaluate part and its routes do."""

    @property
    def runs(self) -> Evaluations:
        """All evaluations."""
        return self.models.evaluations()

    # what there is

    def adapters(self, checkpoint: str) -> list[str]:
        """The adapters that fit a base model and can be drawn without a WebUI, by name."""
        layers = self._layers(self.checkpoints().get(checkpoint))
        return [name for name in self.models.model_names() if self._usable(name, layers)]

    def _usable(self, name: str, layers: Sequence[Layer]) -> bool:
        try:
            spec = self.models.spec(self.models.find(name))
            if layers:
                check_fit(spec, layers, name)
        except (IPAdapterError, OSError):
            return False
        return not spec.posed

    def _layers(self, base: Path | None) -> list[Layer]:
        """The cross-attention layers of a checkpoint, [] where its file does not tell."""
        return [] if base is None else layers_in(shapes_of(base))

    def judges(self) -> dict[str, Recognised]:
        """The CLIPs that can measure, by their file's name."""
        return {entry.path.name: entry for entry in self.models.catalog.all() if arch_of(entry) is not None}

    def composed(self, chosen: Mapping[str, Any]) -> str:
        """The YAML text of what was chosen."""
        base = chosen.get("checkpoint")
        size = 1024 if base and family(Path(base)) == "sdxl" else 512
        return text_of({**chosen, "count": 1, "steps": 50, "cfg": 7.5, "width": size, "height": size, "batch": 4})

    def chosen(self, checkpoint: str, adapters: Sequence[str], data: str, weights: str, judge: str) -> dict[str, Any]:
        """The fields that the controls stand for."""
        base, clip = self.checkpoints().get(checkpoint), self.judges().get(judge)
        return {
            "checkpoint": "" if base is None else str(base),
            "adapter": list(adapters or ()),
            "references": str(data or "").strip(),
            "weights": _numbers(weights),
            "clip": "" if clip is None else str(clip.path),
        }

    # what is done

    def start(self, name: Any, config: Any, unload: Any = False) -> EvaluationState:
        """Starts an evaluation in a process of its own. config: the flags of ``evaluate`` by name; adapters, the
        checkpoint and the CLIP also by their names here, and what is not given of files is what the WebUI would take.
        Raises IPAdapterError."""
        self.allow()
        checked_name("name", name)
        given = dict(config) if isinstance(config, Mapping) else fields_of(config)
        fields = self._completed({key: value for key, value in given.items() if value not in ("", None, [])})
        return self.runs.start(name, fields, self.launch(unload, "checkpoint" in fields)).state()

    def _completed(self, fields: dict[str, Any]) -> dict[str, Any]:
        """With the files that are not named. Raises IPAdapterError."""
        self._check_references(fields)
        adapters = self._adapters(fields)
        base = self._checkpoint(fields, bool(adapters))
        if base is not None:
            fields["checkpoint"] = str(base)
            if "config" not in fields and (config := self.yaml_of(base)):
                fields["config"] = config
        specs = {label: self.models.spec(path) for label, path in adapters.items()}
        self._check_fit(specs, base)
        fields |= {"adapter": [f"{label}={path}" for label, path in adapters.items()]} if adapters else {}
        needed = [self._needed(label, spec) for label, spec in specs.items()]
        if "encoder" not in fields and (files := [path for path in needed if path]):
            fields["encoder"] = list(dict.fromkeys(files))
        if "face_models" not in fields and any(spec.of_face for spec in specs.values()):
            fields["face_models"] = [str(one) for one in self.models.host.face_folders() if one.is_dir()]
        return fields | self._judge(fields)

    def _check_references(self, fields: Mapping[str, Any]) -> None:
        """Raises UnitError, FileError: at once, and not by a process that loads models first."""
        data = fields.get("references")
        if not isinstance(data, str) or not data.strip():
            raise UnitError("references", data, "the path of a folder with pictures",
                            "references: type the path of a folder with pictures first")  # fmt: skip
        folder = Path(os.path.abspath(os.path.expanduser(data.strip())))
        check_count(folder, time.monotonic() + _SECONDS)
        coco, limit = fields.get("coco"), fields.get("limit")
        if coco is None and (limit is None or (isinstance(limit, int) and limit > 0)):
            read_items(folder, limit=limit)

    def _adapters(self, fields: Mapping[str, Any]) -> dict[str, Path]:
        """Files by the name that the table gives them. Raises UnitError."""
        given = fields.get("adapter", [])
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UnitError("adapter", names, "a list of adapters, by their names")
        if not names and not any(fields.get(other) for other in _OTHERS):
            raise UnitError("adapter", names, "at least one", "adapter: choose at least one adapter first")
        found: dict[str, Path] = {}
        for name in names:
            label, path = self._file(name)
            found[_label(label, found)] = path
        return found

    def _file(self, name: str) -> tuple[str, Path]:
        """A name of the list, or [NAME=]FILE as on the command line. Raises AdapterMissing."""
        label, sign, rest = name.partition("=")
        for title, text in ((label, rest if sign else ""), (Path(name).stem, name)):
            if text and os.path.isabs(text) and os.path.isfile(text):
                return title, Path(text)
        return name, self.models.find(name)

    def _checkpoint(self, fields: Mapping[str, Any], needed: bool) -> Path | None:
        """By its name or path; the one in use where none is given. Raises UnitError."""
        listed, given = self.checkpoints(), fields.get("checkpoint")
        if given is None:
            return next(iter(listed.values()), None) if needed or fields.get("text_baseline") else None
        path = listed.get(given) if isinstance(given, str) else None
        if path is None and not (isinstance(given, str) and os.path.isfile(given)):
            raise UnitError("checkpoint", given, f"the path of a checkpoint, or one of {', '.join(listed) or 'none'}")
        return path or Path(given)

    def _check_fit(self, specs: Mapping[str, VariantSpec], base: Path | None) -> None:
        """Raises WrongBase, which names those that do not fit."""
        layers, wrong = self._layers(base), []
        for label, spec in specs.items():
            try:
                if layers:
                    check_fit(spec, layers, label)
            except WrongBase:
                wrong.append(f"{label} was made for {spec.base}")
        if wrong and base is not None:
            which = "no adapter fits" if len(wrong) == len(specs) else "an adapter does not fit"
            raise WrongBase(
                f"{which} the base model {base.stem}: {'; '.join(wrong)}. Choose a base model that they were made for, "
                "or other adapters", field="adapter",
            )  # fmt: skip

    def _needed(self, label: str, spec: VariantSpec) -> str:
        """The file of its encoder, "" where it takes none of CLIP. Raises TrainingError, which says what is missing."""
        try:
            if spec.of_face:
                self.models.faces.check(spec.needs[0].encoder)
            need = next((need for need in spec.needs if not need.is_face), None)
            return "" if need is None else str(self.models.source().find(need).path)
        except IPAdapterError as error:
            raise TrainingError(f"{label}: {error}") from None

    def _judge(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """Which CLIP measures. Raises UnitError."""
        judges, given = self.judges(), fields.get("clip")
        if given is None and not judges:
            raise UnitError(
                "clip", None, "the file of a CLIP with both towers", f"clip: {NO_JUDGE[0].lower()}{NO_JUDGE[1:]}"
            )
        entries = {str(entry.path): entry for entry in judges.values()}
        entry = next(iter(judges.values())) if given is None else judges.get(str(given)) or entries.get(str(given))
        if entry is None:
            return {}
        arch = fields.get("clip_arch") or arch_of(entry)
        return {"clip": str(entry.path), **({"clip_arch": arch} if arch else {})}

    def stop(self, name: Any) -> EvaluationState:
        """Ends an evaluation. Raises UnitError, TrainingError."""
        self.allow()
        run = self.runs.run(name)
        run.stop()
        return run.state()

    def state(self, name: Any) -> EvaluationState:
        """What an evaluation is doing. Raises UnitError."""
        return self.runs.run(name).state()

    def report(self, name: Any) -> Report | None:
        """What an evaluation found; None before it is done. Raises UnitError."""
        return self.runs.run(name).report()

    def grid(self, name: Any) -> Path:
        """The grid of pictures of one that is done. Raises UnitError."""
        run = self.runs.run(name)
        if run.report() is None or not run.grid.is_file():
            raise UnitError("name", name, "the name of an evaluation that is done")
        return run.grid


def _numbers(text: Any) -> list[Any]:
    """The numbers of a text with commas; what is none stays, to be refused when it runs."""
    found: list[Any] = []
    for part in filter(None, (one.strip() for one in str(text or "").split(","))):
        try:
            number = float(part)
            found.append(int(number) if number.is_integer() else number)
        except (ValueError, OverflowError):
            found.append(part)
    return found


def _label(name: str, taken: Mapping[str, Path]) -> str:
    """A name that the table and a folder can have: the adapter's own, as far as that goes."""
    plain = re.sub(r"[^\w.+-]+", "_", name).strip(".") or "adapter"
    plain = plain if re.match(r"\w", plain) else f"a{plain}"
    if plain in (BASE, TEXT, REFERENCE) or is_device(plain):
        plain += "-adapter"
    known, label, count = {one.casefold() for one in taken}, plain, 2
    while label.casefold() in known:
        label, count = f"{plain}-{count}", count + 1
    return label
