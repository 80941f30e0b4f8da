"""What a WebUI's log says of other extensions."""

from __future__ import annotations

import re


def missing_package(log: str, extension: str) -> str:
    """The package for want of which the WebUI could not load a script of this extension, or ''. Any other error of it
    is no reason to skip a test."""
    for part in log.split("*** Error loading script: ")[1:]:
        report = part.partition("\n---")[0].replace("\\", "/")
        found = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", report)
        if found and f"{extension}/" in report:
            return found[1]
    return ""
