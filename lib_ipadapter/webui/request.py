"""The script's arguments, from the panel or from an API request, as unit objects. Pure: imports no ``modules``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import IPAdapterError, UnitError
from .panel.values import units_from_panel

Fill = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def requested_units(args: Sequence[Any], fill: Fill = dict) -> list[dict[str, Any]]:
    """The script's arguments as unit objects, from the panel or from an API request.

    The panel's first argument is its enable flag, a bool; a request puts a unit (or one list of units)
    there. Panel values behind a list of units come from the request's infotext, and the units' own
    fields win over them, as ``fill`` gives them (a preset's among them). Raises UnitError, and what
    ``fill`` raises.
    """
    flag, rest = (args[0], list(args[1:])) if args else (False, [])
    if flag is None or isinstance(flag, bool):
        units = [arg for arg in rest if isinstance(arg, Mapping)]
        if not flag and not units:
            return []
        return _over_panel(units, [], fill) if units else _panel(rest)
    if isinstance(flag, Mapping):
        given = _positional(flag, rest)
        return _over_panel(given, [] if len(given) > 1 else _panel(rest), fill)
    if isinstance(flag, (list, tuple)):
        return _over_panel(flag, _panel(rest), fill)
    raise UnitError("args", flag, "unit objects, or one list of unit objects")


def _positional(first: Mapping[str, Any], rest: Sequence[Any]) -> list[Any]:
    """Units given one after the other end at the first value that is the panel's own."""
    units: list[Any] = [first]
    for arg in rest:
        if not isinstance(arg, Mapping):
            break
        units.append(arg)
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
        kept = {
            name: value for name, value in base.items() if name != "enabled" and (name != "images" or value)
        }
        try:
            merged.append({**kept, **fill(unit)})
        except IPAdapterError as error:
            raise error.in_unit(index) from None
    return merged
