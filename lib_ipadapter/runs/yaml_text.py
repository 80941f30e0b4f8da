"""A config as the YAML text that people see and change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError

LONGEST = 2**16  # characters


def fields_of(text: Any) -> dict[str, Any]:
    """The fields in a YAML text, not checked yet. Raises ConfigError."""
    import yaml

    if not isinstance(text, str):
        raise ConfigError("config", text, "fields, or the YAML text of them")
    if len(text) > LONGEST:
        raise ConfigError("config", f"{len(text)} characters", f"at most {LONGEST}")
    try:
        # A few lines of aliases of aliases may stand for gigabytes.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ConfigError("config", "an alias (*name)", "plain values: write them out")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("config", " ".join(str(error).split())[:200], "plain YAML, a line for each field") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConfigError("config", text[:80], "a YAML mapping: a line for each field, as steps: 10000")
    return content


def text_of(fields: Mapping[str, Any]) -> str:
    """The YAML text of fields, in their order; a list of plain values is one line."""
    import yaml

    return "".join(
        yaml.safe_dump(
            {name: value}, sort_keys=False, allow_unicode=True, width=1000,
            default_flow_style=None if isinstance(value, (list, tuple)) else False,
        )
        for name, value in fields.items()
    )  # fmt: skip


def changed(text: str, chosen: Mapping[str, Any], names: Sequence[str]) -> str:
    """A text with what was chosen put in the place of its fields ``names``, whatever else people wrote into it. Raises
    ConfigError."""
    before = fields_of(text)
    kept = {name: value for name, value in before.items() if name not in names}
    return text_of({**{name: chosen[name] for name in names if chosen.get(name) not in ("", None, [])}, **kept})
