"""The extension's logger: one line per message on stderr, separate from the WebUI's logger."""

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
