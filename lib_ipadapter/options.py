"""Options: each is declared once, as one field of a frozen dataclass.

    @dataclass(frozen=True)
    class Settings:
        steps: int = whole(50, "Sampling steps.", 1, 1000)
        fit: str = choice("crop", "How a picture is made square.", ("crop", "pad"))

From that line come the default, the checks and their messages (``parse``), the flag of the command line with its help
(``add_flags``, ``from_flags``), the JSON schema, and the tables in docs/.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError, UnitError

T = TypeVar("T")
Error = type[ConfigError] | type[UnitError]
_KEY = "option"
_WORDS = {
    "bool": "true or false",
    "string": "a string",
    "path": "a path",
    "whole": "a whole number",
    "number": "a number",
}
_JSON: dict[str, dict[str, Any]] = {
    "bool": {"type": "boolean"},
    "string": {"type": "string"},
    "path": {"type": "string"},
    "whole": {"type": "integer"},
    "number": {"type": "number"},
    "choice": {"type": "string"},
}


@dataclass(frozen=True)
class Option:
    """One option.

    ``kind`` is bool, string, path, whole, number or choice; or a name for what ``normalize`` makes of a value, whose
    ``hint`` says what is allowed and whose ``json`` is the JSON schema's type.
    """

    kind: str
    default: Any
    help: str
    minimum: float = -math.inf
    maximum: float = math.inf
    choices: tuple[str, ...] = ()
    above: bool = False  # the minimum itself is not allowed
    optional: bool = False  # None is allowed
    required: bool = False  # the default is not a value
    many: str = ""  # a tuple of such values: "repeat" the flag, or "," between them; not empty where the default is not
    normalize: Callable[[Any, Option], Any] | None = None
    hint: str = ""
    json: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label: str = ""  # of the panel's component
    step: float = 0.01  # of the panel's slider
    group: str = ""
    in_infotext: bool = True  # False for what does not change the picture
    aliases: tuple[str, ...] = ()  # other names that are taken for this one
    switched: tuple[str, str] | None = None  # what false and true stand for, of a choice that was a switch
    metavar: str = ""
    name: str = ""
    error: Error = ConfigError

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def expected(self) -> str:
        """What a value may be, in words."""
        if self.hint:
            return self.hint
        if self.kind == "choice":
            return f"one of {', '.join(self.choices)}"
        words = _WORDS[self.kind]
        if math.isfinite(self.minimum):
            words += f" {'above' if self.above else 'from'} {_shown(self.minimum)} to {_shown(self.maximum)}"
        return words

    def parse(self, value: Any) -> Any:
        """``value``, checked. Raises ``error`` with the name, the value and what was expected."""
        if value is None and self.optional:
            return None
        if not self.many:
            return self._parse_one(value)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self.error(self.name, value, f"a list: {self.expected} each")
        if not value and self.default:
            raise self.error(self.name, value, f"at least one: {self.expected}")
        return tuple(map(self._parse_one, value))

    def _parse_one(self, value: Any) -> Any:
        if self.switched and isinstance(value, bool):
            value = self.switched[value]
        if not self._is_of_kind(value):
            raise self.error(self.name, value, self.expected)
        if self.required and value == "":
            raise self.missing()
        if self.normalize is not None:
            return self.normalize(value, self)
        if self.kind == "number":
            return float(value)
        return Path(value) if self.kind == "path" else value

    def missing(self) -> ConfigError | UnitError:
        """The error where it is required and not given."""
        return self.error(self.name, self.default, f"{self.expected}; it has no default")

    def _is_of_kind(self, value: Any) -> bool:
        if self.kind == "bool":
            return isinstance(value, bool)
        if self.kind == "string":
            return isinstance(value, str) and not any(
                "\ud800" <= c <= "\udfff" for c in value
            )  # no text of any encoding
        if self.kind == "path":
            return isinstance(value, Path) or (isinstance(value, str) and value != "")
        if self.kind == "choice":
            return isinstance(value, str) and value in self.choices
        if self.kind in ("whole", "number"):
            kinds = (int,) if self.kind == "whole" else (int, float)
            return isinstance(value, kinds) and not isinstance(value, bool) and self._in_range(value)
        return True  # normalize checks it

    def _in_range(self, value: float) -> bool:
        """False for NaN too."""
        low = value > self.minimum if self.above else value >= self.minimum
        return low and value <= self.maximum

    def read(self, text: Any) -> Any:
        """What the text of a flag stands for; a text that is none stays, for ``parse`` to refuse."""
        if self.many == ",":
            parts = text.split(",") if isinstance(text, str) else text
            return [self._read_one(part) for part in parts]
        return [self._read_one(part) for part in text] if self.many else self._read_one(text)

    def _read_one(self, text: Any) -> Any:
        kind = {"whole": int, "number": float}.get(self.kind)
        if kind is None or not isinstance(text, str):
            return text
        try:
            return kind(text)
        except ValueError:
            return text

    def schema(self) -> dict[str, Any]:
        """JSON schema of a value."""
        kind = dict(self.json or _JSON[self.kind])
        if self.kind in ("whole", "number"):
            kind |= {"minimum": self.minimum, "maximum": self.maximum}
        if self.choices:
            kind["enum"] = list(self.choices)
        if self.switched:
            kind |= {"type": ["string", "boolean"], "enum": [*self.choices, False, True]}
        default = list(self.default) if isinstance(self.default, tuple) else self.default
        names = f" Also accepted as {', '.join(self.aliases)}." if self.aliases else ""
        return {**kind, "default": default, "title": self.label, "description": f"{self.help}{names}"}


def _shown(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


# declarations: each is the default of a dataclass field, more stands for any further field of Option


def declare(kind: str, default: Any, help: str, **more: Any) -> Any:
    """A field of any kind."""
    return dataclasses.field(default=default, metadata={_KEY: Option(kind, default, help, **more)})


def switch(default: bool, help: str, **more: Any) -> Any:
    """On or off."""
    return declare("bool", default, help, **more)


def string(default: str | None, help: str, **more: Any) -> Any:
    """Text without white space at its ends."""
    return declare("string", default, help, **more)


def whole(default: int | None, help: str, low: int, high: int, **more: Any) -> Any:
    """A whole number; None only where it is the default."""
    return declare("whole", default, help, minimum=low, maximum=high, optional=default is None, **more)


def number(default: Any, help: str, low: float, high: float, **more: Any) -> Any:
    """A finite number, as float."""
    return declare("number", default, help, minimum=low, maximum=high, **more)


def choice(default: str | None, help: str, choices: tuple[str, ...], **more: Any) -> Any:
    """One of these; None only where it is the default."""
    return declare("choice", default, help, choices=choices, optional=default is None, **more)


def path(help: str, default: Path | tuple[Path, ...] | None = None, **more: Any) -> Any:
    """A path; without a default, None stands for none unless it is ``required``."""
    optional = default is None and not more.get("required")
    return declare("path", default, help, optional=optional, **{"metavar": "FILE", **more})


def same_as(cls: type, name: str, **more: Any) -> Any:
    """A field declared as the field of that name of another class."""
    option = next(option for option in fields_of(cls) if option.name == name)
    option = dataclasses.replace(option, error=ConfigError, **more)
    return dataclasses.field(default=option.default, metadata={_KEY: option})


# what is read off a class


def fields_of(cls: Any, error: Error | None = None) -> tuple[Option, ...]:
    """The options of a dataclass, in order; their ``error`` is what the checks raise."""
    given = {} if error is None else {"error": error}
    return tuple(
        dataclasses.replace(field.metadata[_KEY], name=field.name, **given)
        for field in dataclasses.fields(cls)
        if _KEY in field.metadata
    )


def canonical(options: Iterable[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` by the options' names, where some go by an alias. Raises the option's error where both are given."""
    result = dict(values)
    for option in options:
        given = [name for name in (option.name, *option.aliases) if name in values]
        if len(given) > 1:
            expected = f"only one of {' and '.join(given)}: they are the same field"
            raise option.error(given[1], values[given[1]], expected)
        if given and given[0] != option.name:
            result[option.name] = result.pop(given[0])
    return result


def checked(options: Sequence[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """Each value, parsed, by its option's name. Raises the options' error for an unknown name or a bad value."""
    by_name = {option.name: option for option in options}
    values = canonical(options, values)
    for name in values:
        if name not in by_name:
            near = difflib.get_close_matches(str(name), by_name, 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            expected = f"one of the fields{meant} {', '.join(by_name)}"
            raise options[0].error(str(name), values[name], expected)
    return {name: by_name[name].parse(value) for name, value in values.items()}


def parse(cls: type[T], values: Mapping[str, Any]) -> T:
    """An object of a class of options. Raises ConfigError for an unknown, bad or missing value."""
    options = fields_of(cls)
    given = checked(options, values)
    for option in options:
        if option.required and option.name not in given:
            raise option.missing()
    return cls(**given)


# the command line


def add_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """A flag for each option, by groups. Flags that are not given are None: the defaults are the class's."""
    groups: dict[str, Any] = {"": parser}
    for option in fields_of(cls):
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        groups[option.group].add_argument(
            option.flag, dest=option.name, default=None, help=_help(option), **_form(option)
        )


def _form(option: Option) -> dict[str, Any]:
    """How argparse reads a flag."""
    if option.kind == "bool":
        return {"action": argparse.BooleanOptionalAction}
    form: dict[str, Any] = {"action": "append"} if option.many == "repeat" else {}
    if option.choices:
        return {**form, "choices": option.choices}
    return {**form, "metavar": option.metavar or {"whole": "N", "number": "X"}.get(option.kind, "TEXT")}


def _help(option: Option) -> str:
    text = option.help
    if option.required:
        text += " Required."
    elif option.default not in (None, "", ()):
        text += f" Default: {shown_default(option)}."
    return text.replace("%", "%%")


def shown_default(option: Option) -> str:
    """The default as it is typed on the command line."""
    if isinstance(option.default, tuple):
        return ",".join(map(_shown, option.default))
    if option.kind == "bool":
        return "on" if option.default else "off"
    return _shown(option.default) if option.kind == "number" else str(option.default)


def from_flags(cls: type[T], args: argparse.Namespace) -> T:
    """An object of a class of options, from its flags. Raises ConfigError."""
    return parse(cls, given_flags(cls, args))


def as_flags(cls: type, values: Mapping[str, Any]) -> list[str]:
    """The flags that ``from_flags`` reads as these values, by name; None is no flag. Each is --flag=value, so that a
    value may begin with "-"."""
    flags: list[str] = []
    for option in fields_of(cls):
        value = values.get(option.name)
        if value is None:
            continue
        if option.kind == "bool":
            flags.append(option.flag if value else f"--no-{option.flag[2:]}")
        elif option.many == ",":
            flags.append(f"{option.flag}={','.join(map(_typed, value))}")
        else:
            flags += [f"{option.flag}={_typed(one)}" for one in (value if option.many else [value])]
    return flags


def _typed(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def given_flags(cls: type, args: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, by name, not checked yet."""
    return {
        option.name: option.read(getattr(args, option.name))
        for option in fields_of(cls)
        if getattr(args, option.name) is not None
    }
