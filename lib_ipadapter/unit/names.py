"""Names that people give to saved presets and references: valid file names on every system."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import UnitError, printable

INPUT = "img2img"
# Of references by name: saved embeds, a folder of pictures, and the picture of img2img, as it is when the job runs
KINDS = ("embeds", "folder", "input")
_FORBIDDEN = r"\x00-\x1f\x7f-\x9f\ud800-\udfff/\\:*?\"<>|"
_NAME = re.compile(rf"[^{_FORBIDDEN}.][^{_FORBIDDEN}]{{0,79}}")
# File systems limit bytes, not characters: 255, of which a suffix and a temporary file's prefix need some.
_MAX_BYTES = 200
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.DOTALL)


@dataclass(frozen=True)
class Named:
    """References by name: ``kind`` is one of KINDS."""

    kind: str
    name: str


def checked_name(field: str, name: Any) -> str:
    """Returns ``name`` if it is a plain file name on every system, without a folder. Raises UnitError."""
    if name == "":
        raise UnitError(field, name, "a name", f"{field}: type a name first, expected a name of 1 to 80 characters")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name != name.rstrip(" ."):
        raise UnitError(
            field, name, 'a name of 1 to 80 characters without any of / \\ : * ? " < > | and without a dot in front, '
            "a dot or a space at its end",
        )  # fmt: skip
    if len(name.encode()) > _MAX_BYTES:
        raise UnitError(field, name, f"a shorter name: at most {_MAX_BYTES} bytes in UTF-8")
    if is_device(name):
        raise UnitError(field, name, "another name: Windows keeps this one for a device, with any ending")
    return name


def in_text(names: Iterable[str]) -> list[str]:
    """The names that text can say, in alphabetical order. A file whose name is not UTF-8 cannot be asked for."""
    return sorted((name for name in names if name == printable(name)), key=str.casefold)


def is_device(name: str) -> bool:
    """Whether Windows opens a device under this file name, whatever its suffix: CON, aux.txt, COM1, COM¹."""
    return _DEVICE.fullmatch(name.lower()) is not None
