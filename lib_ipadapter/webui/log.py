"""The extension's logger: one line per message on stderr, separate from the WebUI's logger."""

from __future__ import annotations

import logging
import sys

_NAME = "IP-Adapter"


class Line(logging.Formatter):
    """The extension's name before each message, once: an error that names a unit begins with it too."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{_NAME}: {super().format(record).removeprefix(f'{_NAME} ')}"


logger = logging.getLogger("ip-adapter")
logger.propagate = False
if not logger.handlers:
    _handler = logging.StreamHandler(sys.stderr)
    _handler.setFormatter(Line())
    logger.addHandler(_handler)
    logger.setLevel(logging.INFO)
