"""The script's arguments, from the panel or from an API request, as unit objects. Pure: imports no ``modules``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import IPAdapterError, UnitError
from . import bounds
from .panel.values import units_from_panel

_ARGS = "unit objects one after another, or one list of unit objects"
Fill = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def requested_units(args: Sequence[Any], fill: Fill = dict) -> list[dict[str, Any]]:
    """The script's arguments as unit objects, from the panel or from an API request.

    The panel's first argument is its enable flag, a bool; a request puts a unit (or one list of units)
    there. Panel values behind a list of units come from the request's infotext, and the fields of
    the units win over them, as ``fill`` gives them (a preset's among them). Raises UnitError, and what
    ``fill`` raises.
    """
    units = _requested(args, fill)
    bounds.check(units)
    return units


def is_of_panel(args: Sequence[Any]) -> bool:
    """Whether the script's arguments are the panel's alone: of a request, a unit or a list of units comes first, or
    behind the flag."""
    return bool(args) and isinstance(args[0], bool) and not _begins_with_units(args[1:])


def _begins_with_units(values: Sequence[Any]) -> bool:
    """The panel has a bool there."""
    return bool(values) and isinstance(values[0], (Mapping, list, tuple))


def _requested(args: Sequence[Any], fill: Fill) -> list[dict[str, Any]]:
    """By the type of the first argument: the panel's flag, a unit, or a list of units."""
    first, rest = (args[0], list(args[1:])) if args else (False, [])
    if first is None or isinstance(first, bool):
        return _behind_flag(bool(first), rest, fill)
    if isinstance(first, Mapping):
        units = _positional(first, rest)
        return _over_panel(units, [] if len(units) > 1 else _panel(rest), fill)
    if isinstance(first, (list, tuple)):
        _refuse_units(rest)
        return _over_panel(first, _panel(rest), fill)
    raise UnitError("args", first, _ARGS)


def _behind_flag(on: bool, rest: Sequence[Any], fill: Fill) -> list[dict[str, Any]]:
    """Units that a request puts behind the flag count whether it is on or off; the panel's values only if it is on."""
    if _begins_with_units(rest):
        alone = len(rest) > 1 and not isinstance(rest[1], Mapping)
        # Of the panel's values, which hosts put behind a request's, the unit has the place of the first.
        return _requested([rest[0], True, *rest[1:]] if alone else rest, fill)
    _refuse_units(rest)
    return _panel(rest) if on else []


def _refuse_units(values: Sequence[Any]) -> None:
    """Units among the panel's values would be dropped without a word. Raises UnitError."""
    listed = values[0] if values and isinstance(values[0], (list, tuple)) else ()  # empty: a default of the panel
    if any(isinstance(value, Mapping) for value in (*values, *listed)):
        raise UnitError("args", "units with other values between them", _ARGS)


def _positional(first: Mapping[str, Any], rest: Sequence[Any]) -> list[Any]:
    """Units given one after the other end at the first value that belongs to the panel."""
    units: list[Any] = [first]
    for arg in rest:
        if not isinstance(arg, Mapping):
            break
        units.append(arg)
    _refuse_units(rest[len(units) - 1 :])
    return units


def _panel(values: Sequence[Any]) -> list[dict[str, Any]]:
    return [unit for unit in units_from_panel(values) if unit]


def _over_panel(units: Sequence[Any], panel: Sequence[Mapping[str, Any]], fill: Fill) -> list[Any]:
    """Units of a request over the panel's values, which are the defaults unless an infotext filled them."""
    merged: list[Any] = []
    for index, unit in enumerate(units):
        if not isinstance(unit, Mapping):
            merged.append(unit)
            continue
        base = panel[index] if index < len(panel) else {}
        kept = {name: value for name, value in base.items() if name != "enabled" and (name != "images" or value)}
        try:
            merged.append({**kept, **fill(unit)})
        except IPAdapterError as error:
            raise error.in_unit(index) from None
    return merged
