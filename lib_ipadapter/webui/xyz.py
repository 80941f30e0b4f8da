"""Axes for the WebUI's X/Y/Z plot: each field of each unit of the panel, read off ``unit.FIELDS``.

An axis leaves its value on the cell's copy of ``p``; ``Lifecycle.process`` puts it over the unit that panel or
request gave. Values are checked before the first cell is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ImageError, IPAdapterError, UnitError
from ..options import Option
from ..pictures import images
from ..unit import FIELDS, Unit
from ..unit.fields import Reference
from ..unit.names import Named
from . import settings
from .inputs import with_inputs
from .panel.values import named_in

_ATTRIBUTE = "_ipadapter_axes"
_OFF, _ON = "off", "on"
# What the axes take of fields of pictures
_FILES = {"images": "Reference file", "negative": "Negative reference file", "pose": "Pose file"}
UnitsOf = Callable[[Any], Sequence[Any]]


def add_axes(module: Any, models: Any, units_of: UnitsOf) -> None:
    """Extends the axes of the X/Y/Z plot's module, once. units_of: the unit objects that a ``p`` was given."""
    present = {option.label for option in module.axis_options}
    for index in range(settings.unit_count()):
        for field in (field for field in FIELDS if field.in_infotext and field.kind != "image"):
            axis = Axis(field, index, models, units_of)
            if axis.label not in present:
                module.axis_options.append(axis.option(module.AxisOption))


class Axis:
    """One field of one unit (0-based)."""

    def __init__(self, field: Option, index: int, models: Any, units_of: UnitsOf) -> None:
        self.units_of = units_of
        self.field = field
        self.index = index
        self.models = models
        title = _FILES.get(field.name, field.label)
        self.label = f"[IP-Adapter] {title}" if index == 0 else f"[IP-Adapter {index + 1}] {title}"

    def option(self, kind: Callable[..., Any]) -> Any:
        """The WebUI's AxisOption."""
        choices: Callable[[], list[str]] | None = None
        if self.field.kind == "bool":
            choices = lambda: [_ON, _OFF]  # noqa: E731
        elif self.field.kind == "choice":
            choices = lambda: list(self.field.choices)  # noqa: E731
        elif self.field.name == "model":
            choices = self.models.model_names
        cast = float if self.field.kind == "number" else str
        # Another adapter or reference is read and encoded: those axes go outside where the plot may choose.
        cost = {"model": 0.3, "images": 0.2}.get(self.field.name, 0.0)
        return kind(
            self.label, cast, self.apply, format_value=self.shown, confirm=self.confirm, cost=cost, choices=choices
        )  # fmt: skip

    def apply(self, p: Any, value: Any, values: Sequence[Any]) -> None:
        """Leaves the value on a cell's ``p``."""
        # Cells share what p had: a new mapping for each.
        setattr(p, _ATTRIBUTE, {**vars(p).get(_ATTRIBUTE, {}), (self.index, self.field.name): self._meant(value)})

    def confirm(self, p: Any, values: Sequence[Any]) -> None:
        """Checks all values of the axis, and that the unit is on: what a cell raises, the plot swallows. Raises
        IPAdapterError."""
        units = self.units_of(p)
        for value in values:
            try:
                self._check(value, units, p)
            except IPAdapterError as error:
                raise error.at(f"X/Y/Z plot, {self.label}") from None

    def _check(self, value: Any, units: Sequence[Any], p: Any) -> None:
        meant = self._meant(value)
        over_units({(self.index, self.field.name): meant}, units)
        meant = self.field.parse(meant)
        if self.field.name == "model":
            self.models.find(meant)
        if self.field.kind == "images":
            self._check_named(with_inputs(Unit(images=meant), p).images)

    def _check_named(self, references: Sequence[Reference]) -> None:
        for named in (reference.image for reference in references):
            if isinstance(named, Named):
                self.models.shelf().check(named)

    def shown(self, p: Any, option: Any, value: Any) -> str:
        """A cell's caption."""
        text = Path(value).name if self.field.kind == "images" else f"{value:g}" if isinstance(value, float) else value
        return f"{self.label.partition('] ')[2]}: {text}"

    def _meant(self, value: Any) -> Any:
        """The plot's text as a value of the field's kind. Raises UnitError or ImageError."""
        if self.field.kind == "bool":
            if value not in (_ON, _OFF):
                raise UnitError(self.field.name, value, f"{_ON} or {_OFF}")
            return value == _ON
        if self.field.kind == "images":
            return [_reference(value)]
        return value


def _reference(value: str) -> Any:
    """A picture's path, or what "embeds: NAME" and "folder: NAME" name."""
    return named_in(value) or _file(value)


def _file(value: str) -> Path:
    path = Path(value)
    if not path.is_file():
        raise ImageError(
            f"{value}: there is no such file; the axis takes paths of pictures on the WebUI's machine, "
            "embeds: NAME or folder: NAME"
        )
    images.load(path)
    return path


def cell_values(p: Any) -> dict[tuple[int, str], Any]:
    """What the plot's axes left on ``p``, by (unit, field)."""
    values: dict[tuple[int, str], Any] = vars(p).get(_ATTRIBUTE, {})
    return values


def over_units(values: Mapping[tuple[int, str], Any], units: Sequence[Any]) -> list[Any]:
    """The units with a cell's values in them. Raises UnitError for a value that would act on nothing."""
    changed = list(units)
    for (index, name), value in values.items():
        unit = changed[index] if index < len(changed) else None
        if isinstance(unit, Mapping) and unit.get("enabled", True):
            changed[index] = {**unit, name: value}
        elif name != "enabled" or value:
            shown = [str(path) for path in value] if name == "images" else value
            expected = f"unit {index + 1} to be switched on, since the X/Y/Z plot varies it"
            raise UnitError(name, shown, expected).in_unit(index)
    return changed
