"""A config's YAML file, read safely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..runs.yaml_text import LONGEST, fields_of


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of fields. Raises ConfigError."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(LONGEST + 1)
    except OSError as error:
        raise ConfigError("config", str(path), f"a file that can be read ({error.strerror or error})") from None
    except ValueError as error:
        raise ConfigError("config", str(path), f"plain YAML in UTF-8 ({error})") from None
    try:
        return fields_of(text)
    except ConfigError as error:
        error.at(str(path))
        raise
