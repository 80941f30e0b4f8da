"""A config as the YAML text that people see and change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..errors import ConfigError

LONGEST = 2**16  # characters
_DEEPEST = 20  # levels


def fields_of(text: Any) -> dict[str, Any]:
    """The fields in a YAML text, not checked yet. Raises ConfigError."""
    if not isinstance(text, str):
        raise ConfigError("config", text, "fields, or the YAML text of them")
    if len(text) > LONGEST:
        raise ConfigError("config", f"more than {LONGEST} characters", f"at most {LONGEST}")
    try:
        content = _content(text)
    except NotYaml as error:
        raise ConfigError("config", str(error), "plain YAML, a line for each field") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConfigError("config", text[:80], "a YAML mapping: a line for each field, as steps: 10000")
    return content


class NotYaml(ValueError):
    """A text that is no plain YAML; the message is one line."""


def plain(read: Callable[[], Any]) -> Any:
    """What ``read`` reads by PyYAML. Raises NotYaml: of its tags some fail with any exception, as KeyError of
    "!!bool maybe"."""
    try:
        return read()
    except ConfigError:
        raise
    except Exception as error:
        raise NotYaml(" ".join(f"{error or type(error).__name__}".split())[:200]) from None


def _check_events(events: Iterable[Any]) -> None:
    """A few lines of aliases of aliases may stand for gigabytes, and lists of lists of lists take PyYAML minutes."""
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError("config", "an alias (*name)", "plain values: write them out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ConfigError("config", f"lists more than {_DEEPEST} levels deep", "plain YAML, a line for each field")


def _content(text: str) -> Any:
    import yaml

    plain(lambda: _check_events(yaml.parse(text)))
    loader = yaml.SafeLoader(text)
    root = plain(loader.get_single_node)
    if isinstance(root, yaml.MappingNode):
        names = Counter(str(name.value) for name, _ in root.value)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ConfigError(twice[0], "two lines", "one: YAML would take the last without a word")
    return None if root is None else plain(lambda: loader.construct_document(root))


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
    fields = fields_of(text)
    for name in names:
        if chosen.get(name) in ("", None, []):
            fields.pop(name, None)
        else:
            fields[name] = chosen[name]
    return text_of(fields)
