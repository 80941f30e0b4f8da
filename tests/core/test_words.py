"""Refusals on the page name what people see there; those of the API its fields."""

from __future__ import annotations

from typing import Any

import pytest

from lib_ipadapter.errors import FileError, UnitError
from lib_ipadapter.unit import FIELDS, Unit
from lib_ipadapter.webui.request import is_of_panel
from lib_ipadapter.webui.words import LABELS, reworded, worded

WRONG: dict[str, Any] = {"bool": "x", "number": 999, "choice": "x", "string": 7}


@pytest.mark.parametrize("field", [field for field in FIELDS if field.kind in WRONG and field.label])
def test_every_field_is_called_by_its_label(field: Any) -> None:
    with pytest.raises(UnitError) as caught:
        Unit.parse({field.name: WRONG[field.kind]})
    assert worded(caught.value).startswith(f"{field.label}: got ")
    assert worded(caught.value.in_unit(1)).startswith(f"IP-Adapter unit 2: {field.label}: got ")


def test_the_texts_of_layers_and_curves_too() -> None:
    for name in ("layers", "curve", "box"):
        with pytest.raises(UnitError) as caught:
            Unit.parse({name: "abc"})
        assert worded(caught.value).startswith(f"{LABELS[name]}: got 'abc'")


def test_other_messages_stay() -> None:
    assert worded(UnitError("wieght", 1, "a field")) == "wieght: got 1, expected a field"
    assert worded(UnitError("start", 1, "less", "Start is after End")) == "Start is after End"
    broken = FileError("start: x.png", "broken", field="start")
    assert worded(UnitError("model", "", "x", "the model: none")) == "the model: none"
    assert "broken" in worded(broken)


@pytest.mark.parametrize("args", [(True, True, []), (True,), (False, None)])
def test_the_panels_arguments_are_answered_in_its_words(args: tuple[Any, ...]) -> None:
    assert is_of_panel(args)
    error = reworded(UnitError("layers", "99:1", "less").in_unit(0))
    assert error.detail["message"] == str(error) == "IP-Adapter unit 1: Weight per layer: got '99:1', expected less"
    assert error.detail["field"] == "layers"


@pytest.mark.parametrize("args", [({"layers": "99:1"},), ([{"layers": "99:1"}],), (True, {"layers": "99:1"}), ()])
def test_a_requests_are_known(args: tuple[Any, ...]) -> None:
    assert not is_of_panel(args)
