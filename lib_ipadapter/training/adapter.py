"""TrainableAdapter: a projection, K' and V' as parameters; from nothing, or from a file, and back to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..adapters.adapter import Adapter
from ..adapters.file import open_adapter
from ..adapters.lora import TARGETS, lora_key
from ..adapters.projection import FacePlusProjection, FaceProjection, LinearProjection, MLPProjection, Resampler
from ..adapters.variant import DIM_HEAD, LAYERS, PROJECTION, VariantSpec, identify, identify_file
from ..attention.layers import Layer, check_fit
from ..attention.lowrank import Place
from ..encoders.spec import Feature
from ..errors import WrongBase
from .config import TrainConfig
from .faces import unpacked

FEATURES: Mapping[str, Feature] = {"base": "pooled", "plus": "penultimate", "full": "penultimate", "faceid": "face",
                                    "faceid-plus": "face", "faceid-plusv2": "face"}  # fmt: skip
TOKENS = {"base": 4, "plus": 16}
FACE_TOKENS = 4
FACE_HIDDEN = 1024  # of the MLP
Lora = Mapping[Place, tuple[Tensor, Tensor]]


class TrainableAdapter(nn.Module):
    """The parameters that a training changes, float32.

    projection: features to image tokens; to_k, to_v: K' and V' [width, context] of each layer in file
    order, empty for the concat ablation, which has the base's own; lora: (down, up) by layer number and projection,
    which are kept by ``name_of``.
    """

    def __init__(self, projection: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], lora: Lora | None = None) -> None:
        super().__init__()
        self.projection = projection
        self.to_k = nn.ParameterList([nn.Parameter(key.detach().float().clone()) for key, _ in pairs])
        self.to_v = nn.ParameterList([nn.Parameter(value.detach().float().clone()) for _, value in pairs])
        own = lora or {}
        self.places = tuple(own)
        self.down, self.up = (
            nn.ParameterDict({name_of(place): nn.Parameter(pair[i].detach().float().clone())
                              for place, pair in own.items()})
            for i in (0, 1)
        )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The weights under an adapter file's names, float32 on the CPU."""
        named = {f"{PROJECTION}{key}": value for key, value in self.projection.state_dict().items()}
        for i, (key, value) in enumerate(zip(self.to_k, self.to_v, strict=True)):
            named[f"{LAYERS}{2 * i + 1}.to_k_ip.weight"] = key
            named[f"{LAYERS}{2 * i + 1}.to_v_ip.weight"] = value
        for place in self.places:
            named[lora_key(*place, "down")] = self.down[name_of(place)]
            named[lora_key(*place, "up")] = self.up[name_of(place)]
        return {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in named.items()}

    def adapter(self, path: Path) -> Adapter:
        """As it is now, as the rest of the package uses adapters; ``path`` is only a name."""
        tensors = self.tensors()
        return Adapter(identify({key: tuple(value.shape) for key, value in tensors.items()}, path), tensors, path)


class TrainedFacePlus(FacePlusProjection):
    """FaceID-Plus over one tensor, the features of FacePlusEncoder [B, R + N, W]."""

    shortcut: float | None = 1.0

    def of(self, variant: str) -> TrainedFacePlus:
        """The same as that version."""
        self.shortcut = 1.0 if variant == "faceid-plusv2" else None
        return self

    def forward(self, face: Tensor, crop: Tensor | None = None, shortcut: float | None = None) -> Tensor:
        return super().forward(*unpacked(face), self.shortcut)


def name_of(place: Place) -> str:
    """Of a LoRA's parameters; a module's names have no dots."""
    return f"{place[0]}_{place[1]}"


class _Widths(Protocol):
    """What is asked of an encoder: ``EncoderSpec``, or a face recogniser."""

    @property
    def name(self) -> str:
        """Of the encoder, or of the recogniser's pack."""

    def feature_width(self, feature: Feature) -> int:
        """Columns of the feature."""


def make(config: TrainConfig, layers: Sequence[Layer], encoder: _Widths) -> TrainableAdapter:
    """A fresh adapter, K' and V' beginning as the layer's own K and V, or as those of ``config.init_layers``; or
    that of ``config.init``.

    Raises FileError (the file), WrongBase (it was made for other layers, or for another encoder).
    """
    if config.init:
        return _loaded(config, layers, encoder)
    if config.init_layers:
        adapter = _opened(Path(config.init_layers), layers)
        pairs = [adapter.weights(layer.position) for layer in layers]
    else:
        own = [(layer.module.to_k.weight, layer.module.to_v.weight) for layer in layers]
        pairs = own if config.attention == "decoupled" else []
    lora = fresh_lora(layers, config.lora_rank, config.seed) if config.of_face else {}
    return TrainableAdapter(projection_of(config, layers[0].context, encoder), pairs, lora)


def fresh_lora(layers: Sequence[Layer], rank: int, seed: int) -> dict[Place, tuple[Tensor, Tensor]]:
    """(down, up) for every projection of self- and cross-attention, up zero: it begins as no change (T's recipe, with
    diffusers' LoRALinearLayer). Empty for rank 0."""
    if not rank:
        return {}
    draw = torch.Generator().manual_seed(seed)
    found: dict[Place, tuple[Tensor, Tensor]] = {}
    for layer in layers:
        for number, module in ((layer.number - 1, layer.self_attention), (layer.number, layer.module)):
            for target in TARGETS:
                linear = module.to_out[0] if target == "to_out" else getattr(module, target)
                rows, columns = linear.weight.shape
                down = torch.randn(rank, columns, generator=draw) / rank
                found[number, target] = down, torch.zeros(rows, rank)
    return found


def projection_of(config: TrainConfig, context: int, encoder: _Widths) -> nn.Module:
    """A fresh projection of the config's variant, to tokens of width ``context``; the same for the same seed."""
    width = encoder.feature_width(FEATURES[config.variant])
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(config.seed)
    try:
        if config.variant == "base":
            return LinearProjection(width, config.tokens or TOKENS["base"], context)
        if config.variant == "full":
            return MLPProjection(width, context)
        if config.variant == "faceid":
            return FaceProjection(width, FACE_HIDDEN, config.tokens or FACE_TOKENS, context)
        if config.of_face:
            states = encoder.feature_width("penultimate")
            inner = context // DIM_HEAD * DIM_HEAD  # its queries are tokens, so it is as wide as they are (T)
            resampler = Resampler(states, 0, context, inner, 4 * context, config.resampler_depth, context)
            return TrainedFacePlus(FACE_HIDDEN, config.tokens or FACE_TOKENS, context, resampler).of(config.variant)
        dim = config.resampler_dim
        return Resampler(
            width, config.tokens or TOKENS["plus"], dim, config.resampler_heads * DIM_HEAD, 4 * dim,
            config.resampler_depth, context,
        )  # fmt: skip
    finally:
        torch.random.set_rng_state(generator_state)


def _loaded(config: TrainConfig, layers: Sequence[Layer], encoder: _Widths) -> TrainableAdapter:
    path = Path(config.init)
    if config.attention == "concat":
        from ..standalone.concat import load_concat

        return TrainableAdapter(load_concat(path).projection.requires_grad_(True), [])
    adapter = _opened(path, layers)
    _check_encoder(adapter.spec, config, encoder, path)
    pairs = [adapter.weights(layer.position) for layer in layers]
    projection = adapter.projection.requires_grad_(True)
    if isinstance(projection, FacePlusProjection):
        hidden, own = projection.proj[0].out_features, projection.perceiver_resampler
        loaded = TrainedFacePlus(hidden, projection.tokens, adapter.spec.context, own).of(config.variant)
        loaded.load_state_dict(projection.state_dict())
        projection = loaded
    return TrainableAdapter(projection, pairs, adapter.lora())


def _opened(path: Path, layers: Sequence[Layer]) -> Adapter:
    file = open_adapter(path)
    adapter = Adapter(identify_file(file), file.tensors(), path)
    check_fit(adapter.spec, layers, path.name)
    return adapter


def _check_encoder(spec: VariantSpec, config: TrainConfig, encoder: _Widths, path: Path) -> None:
    if {"portrait": "faceid"}.get(spec.variant, spec.variant) != config.variant:
        raise WrongBase(
            f"{path.name} is of variant {spec.variant}, the config says {config.variant}; change one, or begin "
            "with its K' "
            "and V' only: init_layers instead of init"
        )
    for need in spec.also:
        if need.width != (given := encoder.feature_width(need.feature)):
            raise WrongBase(f"{path.name} takes {need.feature} features {need.width} wide of {need.encoder or 'some '}"
                            f"encoder, but the given one's have {given}; give the one it was trained with")  # fmt: skip
    given = encoder.feature_width(spec.feature)
    if spec.feature_width != given or (spec.encoder and spec.encoder != encoder.name):
        raise WrongBase(
            f"{path.name} takes {spec.feature} features of {spec.encoder or 'some encoder'}, {spec.feature_width} "
            "wide, but "
            f"the encoder {encoder.name} gives {given}; give the one it was trained with"
        )
