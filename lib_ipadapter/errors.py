"""Every error that this package raises on purpose.

IPAdapterError
├── UnitError            a field of a unit is unknown, of a wrong type or out of range
├── ImageError           a reference picture cannot be read
├── FileError            a file on the user's disk
│   ├── NotAnAdapter     another kind of file: a LoRA, a ControlNet, a whole checkpoint, ...
│   ├── UnsupportedAdapter  an image-prompt adapter of a kind that cannot run yet
│   ├── BrokenAdapter    an adapter, but keys are missing, left over or misshapen
│   ├── BrokenControl    a ControlNet that cannot be used
│   ├── UnsafeFile       a pickle that carries code, or a file that is no tensor file at all
│   └── DataError        a set of pictures or captions that cannot be used
├── AdapterMissing       no adapter of that name in the list
├── ControlMissing       no ControlNet of that name, or none that would do
├── EncoderError         the image encoder
│   ├── EncoderMissing   not found in any folder
│   ├── BrokenEncoder    found, but keys are missing or misshapen
│   └── DownloadError    the download failed
├── FaceError            faces in pictures
│   ├── FaceMissing      no face was found in a picture
│   ├── FaceModelMissing a face model was found in no folder
│   ├── FaceModelError   a face model that cannot be loaded or run
│   └── FacesUnavailable onnxruntime or cv2 is missing
├── ModelError           the base model
│   ├── WrongBase        the adapter was made for another base model
│   └── UnsupportedModel no cross-attention that can be reached (SD3, compiled UNets, ...)
├── ConfigError          a field of a training's config is unknown, of a wrong type or out of range
├── TrainingError        a training or an evaluation that cannot start or resume
└── RowsError            a UNet call whose rows cannot be told apart into cond and uncond

A message gives the value, what was expected, and the remedy. ``status_code`` and ``detail`` are what
the WebUI's API answers with.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any


def printable(text: str) -> str:
    """``text`` without halves of characters, which no encoding can write: JSON may bring them, and names of files that
    are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _cut(text: str) -> str:
    """What people can read: a value that is repeated in a message may have any length."""
    text = printable(text[: LONGEST + 1])
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return _cut(value)
    return [*map(_printable, value)] if isinstance(value, list) else value


LONGEST = 8000  # characters of a message


class _Short(reprlib.Repr):
    """A value's repr, of lists of lists of lists only so much that it stays small."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 6
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 40
        self.maxstring = self.maxother = self.maxlong = 4000

    def repr_int(self, x: int, level: int) -> str:
        """Python writes no number of more than some thousand digits."""
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"a number of {x.bit_length()} bits"


def _shown(value: Any, most: int) -> str:
    shown = _Short().repr(value)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


class IPAdapterError(Exception):
    """Base of all errors that this package raises on purpose."""

    status = 422

    def __init__(self, message: str, **detail: Any) -> None:
        message = _cut(message)
        super().__init__(message)
        # The WebUI's API reads both from vars(error), so they must be instance attributes.
        self.status_code = self.status
        self.detail: dict[str, Any] = {
            "extension": "IP-Adapter",
            "message": message,
            **{name: _printable(value) for name, value in detail.items()},
        }

    def in_unit(self, index: int) -> IPAdapterError:
        """The same error, naming the unit (0-based; people see it counted from 1)."""
        if "unit" not in self.detail:
            self.detail["unit"] = index
            self.at(f"IP-Adapter unit {index + 1}")
        return self

    def at(self, place: str) -> IPAdapterError:
        """The same error, its message behind the place where the value was given."""
        self.args = (printable(f"{place}: {self}"),)
        self.detail["message"] = str(self)
        return self


class UnitError(IPAdapterError, ValueError):
    """A field of a unit cannot be used. ``expected`` says what is accepted; ``sentence``: the message, where field,
    value and expectation alone would not tell people what to do."""

    def __init__(self, field: str, value: Any, expected: str, sentence: str = "") -> None:
        shown = _shown(value, 120)
        field = field if len(field) <= 80 else f"{field[:77]}..."
        message = sentence or f"{field}: got {shown}, expected {expected}"
        super().__init__(message, field=field, value=shown, expected=expected)


class ImageError(IPAdapterError, ValueError):
    """A reference picture cannot be read."""


class FileError(IPAdapterError):
    """A file cannot be used; the message starts with its name."""

    def __init__(self, path: Path | str, message: str, **detail: Any) -> None:
        self.path = Path(path)
        name = self.path.name or str(self.path)  # "/" has none
        super().__init__(f"{name}: {message}", file=name, **detail)


class NotAnAdapter(FileError):
    """The file holds something else."""


class UnsupportedAdapter(FileError):
    """An image-prompt adapter of a kind that we recognise and cannot run yet."""


class BrokenAdapter(FileError):
    """An adapter with missing, left-over or misshapen keys."""


class BrokenControl(FileError):
    """A ControlNet of another kind, or with missing, left-over or misshapen keys."""


class UnsafeFile(FileError):
    """The file carries code, or cannot be parsed as tensors."""


class DataError(FileError):
    """A set of pictures, captions or shards that cannot be used."""


class AdapterMissing(IPAdapterError):
    """No adapter of that name."""


class ControlMissing(IPAdapterError):
    """No ControlNet of that name, or none that would do."""


class EncoderError(IPAdapterError):
    """The image encoder cannot be used."""


class EncoderMissing(EncoderError):
    """The encoder that the adapter needs was not found."""


class BrokenEncoder(EncoderError):
    """An encoder file with missing or misshapen keys."""


class DownloadError(EncoderError):
    """A download failed, or the file is not the expected one."""


class FaceError(IPAdapterError):
    """Faces cannot be found or recognised."""


class FaceMissing(FaceError):
    """No face was found in a picture."""


class FaceModelMissing(FaceError):
    """A face model is in none of the searched folders."""


class FaceModelError(FaceError):
    """A face model that cannot be loaded or run."""


class FacesUnavailable(FaceError):
    """A Python package that face models need is missing."""


class ModelError(IPAdapterError):
    """The base model cannot carry the adapter."""


class WrongBase(ModelError):
    """The adapter was made for another base model."""


class UnsupportedModel(ModelError):
    """The model has no cross-attention that the hooks can reach."""


class ConfigError(IPAdapterError, ValueError):
    """A field of a config cannot be used. ``expected`` says what is accepted."""

    def __init__(self, field: str, value: Any, expected: str) -> None:
        field = field if len(field) <= 80 else f"{field[:77]}..."
        super().__init__(f"{field}: got {_shown(value, 400)}, expected {expected}", field=field, expected=expected)


class TrainingError(IPAdapterError):
    """A training that cannot start or resume."""


class RowsError(IPAdapterError):
    """The rows of a UNet call cannot be told apart into cond and uncond."""

    status = 500
