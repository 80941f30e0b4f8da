"""The extension's logger: one line per message on stderr, apart from the WebUI's own."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("ip-adapter")
logger.propagate = False
if not logger.handlers:
    _handler = logging.StreamHandler(sys.stderr)
    _handler.setFormatter(logging.Formatter("IP-Adapter: %(message)s"))
    logger.addHandler(_handler)
    logger.setLevel(logging.INFO)
