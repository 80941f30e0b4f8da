"""Adapter files: opened, brought to the standard keys, and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..encoders.spec import EncoderSpec
from ..errors import BrokenAdapter
from ..files.disk import sha256, short_hash
from ..files.tensors import TensorFile, open_tensors
from ..files.tensors import save_tensors as save_adapter
from .aitoolkit import layer_of, scaled, split, trained_encoder
from .layout import LAYERS, PROJECTION, Shape, standard_layout

__all__ = ["AdapterFile", "open_adapter", "save_adapter", "sha256"]

# Published files whose kind their shapes do not tell, by the WebUI's short hash: of 64 KiB at 1 MiB
_SHORT_HASHES = {
    "d86a490f": "faceid-plus", "6e14fc1a": "faceid-plusv2", "187cb962": "faceid-plusv2", "eb2d3ec0": "instantid",
}  # fmt: skip
VARIANT = "ip_adapter_variant"  # in a header that ``convert`` wrote
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # dtypes that weights may have


@dataclass(frozen=True)
class AdapterFile:
    """An opened file. ``shapes`` and ``dtypes`` by standard key (layout.py); ``metadata`` of a safetensors header;
    ``unused``: keys that are not the adapter's, by what they are."""

    path: Path
    format: str  # "safetensors" or "pickle"
    shapes: dict[str, Shape]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    unused: dict[str, list[str]]
    _source: dict[str, tuple[str, ...]] = field(repr=False)  # standard key to the file's keys
    _file: TensorFile = field(repr=False)
    _factors: dict[str, str] = field(repr=False)  # standard key of a layer's factor to the file's

    @property
    def encoder(self) -> str:
        """The image encoder that our trainer wrote into the header; "" in files of others."""
        return self.metadata.get("encoder", "") if "trained_with" in self.metadata else ""

    @property
    def known(self) -> str:
        """The kind that the header, or the hash of a published file tells; "" for others."""
        return self.metadata.get(VARIANT, "") or _SHORT_HASHES.get(short_hash(self.path), "")

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's tensors by standard key, in the file's dtype, mapped where the file has them whole, the factors
        of layers in their K' and V'. Raises UnsafeFile."""
        read = self._file.tensors([*(own for owns in self._source.values() for own in owns), *self._factors.values()])
        joined = {
            key: read[owns[0]] if len(owns) == 1 else torch.cat([read[own] for own in owns])
            for key, owns in self._source.items()
        }
        return scaled(joined, {layer_of(key): float(read[own]) for key, own in self._factors.items()})

    def trained_encoder(self) -> tuple[EncoderSpec, dict[str, Tensor]] | None:
        """The image encoder that was trained along with the adapter, and its weights; None where the file has none.
        Raises UnsupportedAdapter, UnsafeFile."""
        found = trained_encoder(self._file.shapes, self.path)
        return None if found is None else (found[1], split(found[0], self._file.read))


def open_adapter(path: Path | str) -> AdapterFile:
    """Opens a file by its content, not by its extension. Raises FileError: UnsafeFile, BrokenAdapter, ..."""
    file = open_tensors(path)
    layout = standard_layout(file.shapes, file.path)
    return AdapterFile(
        path=file.path,
        format=file.format,
        shapes={key: _joined([file.shapes[own] for own in owns]) for key, owns in layout.source.items()},
        dtypes=_checked_floats(file, layout.source),
        metadata=file.metadata,
        unused=layout.unused,
        _source=layout.source,
        _file=file,
        _factors=layout.factors,
    )


def _joined(shapes: list[Shape]) -> Shape:
    """The shape of tensors with these shapes, one below the other; of tensors that do not fit, the first's."""
    rest = {shape[1:] for shape in shapes}
    if len(shapes) == 1 or len(rest) > 1 or () in shapes:
        return shapes[0]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _checked_floats(file: TensorFile, source: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    dtypes = {key: file.dtypes[owns[0]] for key, owns in source.items()}
    adapter = [key for key in dtypes if key.startswith((PROJECTION, LAYERS))]
    wrong = [f"{key} is {dtypes[key]}" for key in adapter if dtypes[key] not in FLOATS]
    if wrong:
        raise BrokenAdapter(file.path, f"weights must be floating point, but {', '.join(wrong[:6])}")
    return dtypes
