"""Adapter: a file's spec and weights, ready to make tokens and K', V'."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..encoders.precision import without_autocast
from ..encoders.source import identity
from ..encoders.state import assign
from ..errors import BrokenAdapter
from .file import open_adapter
from .lora import lora_key, lora_places
from .projection import build
from .variant import LAYERS, PROJECTION, VariantSpec, identify_file

_numbers = itertools.count()
_VALUES = ".to_v_ip.weight"


class Adapter:
    """An adapter in the file's dtype, on the CPU. key: equal keys mean equal weights; by default no other adapter has
    it."""

    def __init__(self, spec: VariantSpec, tensors: Mapping[str, Tensor], path: Path, key: Hashable = None) -> None:
        self.spec = spec
        self.path = path
        self.key = key if key is not None else ("adapter", next(_numbers))
        self.weights_key = self.key  # of the file's tensors, whatever kind they are taken for
        self._tensors = tensors
        self._projection: nn.Module | None = None
        self._checked: set[str] = set()
        self._kinds: dict[str, Adapter] = {}

    @classmethod
    def load(cls, path: Path | str) -> Adapter:
        """Opens, identifies and reads a file; it may be replaced or removed afterwards. Raises FileError."""
        file = open_adapter(path)
        key = identity(file.path)
        spec = identify_file(file)
        # Mapped tensors would follow a file that is overwritten in place, and one that is cut off kills the process.
        own = {name: tensor.clone() for name, tensor in file.tensors().items()}
        values = (tensor for name, tensor in own.items() if name.endswith(_VALUES))
        if not lora_places(own) and not any(tensor.float().any() for tensor in values):
            raise BrokenAdapter(
                file.path,
                "all of its to_v_ip weights are 0, so it would change nothing: a file that was saved before it was "
                "trained; use a later one",
            )
        return cls(spec, own, file.path, key)

    @property
    def projection(self) -> nn.Module:
        """The projection in float32, built at the first use."""
        if self._projection is None:
            self._projection = self._build()
        return self._projection

    def _build(self) -> nn.Module:
        state = {k[len(PROJECTION) :]: v.float() for k, v in self._tensors.items() if k.startswith(PROJECTION)}
        broken = [f"{PROJECTION}{key}" for key, value in state.items() if not value.isfinite().all()]
        if broken:
            raise BrokenAdapter(self.path, f"NaN or infinite weights in {', '.join(broken[:6])}; download it again")
        with torch.device("meta"):
            module = build(self.spec, {key: tuple(value.shape) for key, value in state.items()})
        assign(module, state)
        return module.eval().requires_grad_(False)

    def as_kind(self, kind: str) -> Adapter:
        """The same weights as the kind that the user says they are, "auto" for what the file tells. Raises
        UnitError."""
        spec = self.spec.as_kind(kind)
        if spec == self.spec:
            return self
        if kind not in self._kinds:
            other = Adapter(spec, self._tensors, self.path, (self.key, kind))
            other._projection, other._checked, other.weights_key = self._projection, self._checked, self.weights_key
            self._kinds[kind] = other
        return self._kinds[kind]

    @torch.no_grad()
    def tokens(self, features: Mapping[str, Tensor] | Tensor, shortcut: float = 1.0) -> Tensor:
        """Image tokens [B, T, context], float32, on the CPU. features: by name, those of ``spec.needs``, [B, E] or
        [B, N, W]; or the only one. shortcut: s of FaceID-PlusV2; other kinds have none."""
        named = {self.spec.feature: features} if isinstance(features, Tensor) else features
        given: list[Tensor | float] = [named[need.feature].to("cpu", torch.float32) for need in self.spec.needs]
        given += [shortcut] if self.spec.shortcut else []
        with without_autocast(torch.device("cpu")):
            tokens: Tensor = self.projection(*given)
        return tokens

    def lora(self) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
        """(down [rank, in], up [out, rank]) by layer number and name of the projection; empty where the file brings
        none along. Raises BrokenAdapter for NaN or infinite weights."""
        return {
            (number, target): (
                self._finite(lora_key(number, target, "down")), self._finite(lora_key(number, target, "up"))
            )
            for number, target in lora_places(self._tensors)
        }  # fmt: skip

    def weights(self, layer: int) -> tuple[Tensor, Tensor]:
        """(W'_k, W'_v), each [width, context], of a layer by its index in file order (from 0).

        Raises BrokenAdapter for NaN or infinite weights; they are checked at the layer's first use.
        """
        key = f"{LAYERS}{2 * layer + 1}"
        return self._finite(f"{key}.to_k_ip.weight"), self._finite(f"{key}.to_v_ip.weight")

    def _finite(self, key: str) -> Tensor:
        weight = self._tensors[key]
        if key not in self._checked:
            # A sum in float32 is NaN or infinite when any term is; isfinite has no fp8.
            if not weight.float().sum().isfinite():
                raise BrokenAdapter(self.path, f"NaN or infinite weights in {key}; download it again")
            self._checked.add(key)
        return weight
