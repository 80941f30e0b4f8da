"""A config's YAML file, read safely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ConfigError


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of fields. Raises ConfigError."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("config", str(path), f"a file that can be read ({error.strerror or error})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("config", str(path), f"plain YAML ({' '.join(str(error).split())[:160]})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError("config", str(path), "a YAML mapping of fields to values")
    return content
