"""Lines in the WebUI's console."""

from __future__ import annotations

import logging

import pytest

from lib_ipadapter.errors import UnitError
from lib_ipadapter.webui.log import Line


@pytest.mark.parametrize(("said", "line"), [
    (UnitError("model", "", "a name", "no model is chosen").in_unit(1), "IP-Adapter: unit 2: no model is chosen"),
    ("registered the text tower x", "IP-Adapter: registered the text tower x"),
])  # fmt: skip
def test_the_extension_is_named_once(said, line):
    record = logging.LogRecord("ip-adapter", logging.ERROR, "", 0, "%s", (said,), None)
    assert Line().format(record) == line
