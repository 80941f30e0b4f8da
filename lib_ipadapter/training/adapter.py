"""TrainableAdapter: a projection, K' and V' as parameters; from nothing, or from a file, and back to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters.adapter import Adapter
from ..adapters.file import open_adapter
from ..adapters.projection import LinearProjection, MLPProjection, Resampler
from ..adapters.variant import DIM_HEAD, LAYERS, PROJECTION, VariantSpec, identify
from ..attention.layers import Layer, check_fit
from ..encoders.spec import EncoderSpec, Feature
from ..errors import WrongBase
from .config import TrainConfig

FEATURES: Mapping[str, Feature] = {"base": "pooled", "plus": "penultimate", "full": "penultimate"}
TOKENS = {"base": 4, "plus": 16}


class TrainableAdapter(nn.Module):
    """The parameters that a training changes, float32.

    projection: features to image tokens; to_k, to_v: K' and V' [width, context] of each layer in file
    order, empty for the concat ablation, which has the base's own.
    """

    def __init__(self, projection: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.projection = projection
        self.to_k = nn.ParameterList([nn.Parameter(key.detach().float().clone()) for key, _ in pairs])
        self.to_v = nn.ParameterList([nn.Parameter(value.detach().float().clone()) for _, value in pairs])

    def tensors(self) -> dict[str, Tensor]:
        """The weights under an adapter file's names, float32 on the CPU."""
        named = {f"{PROJECTION}{key}": value for key, value in self.projection.state_dict().items()}
        for i, (key, value) in enumerate(zip(self.to_k, self.to_v, strict=True)):
            named[f"{LAYERS}{2 * i + 1}.to_k_ip.weight"] = key
            named[f"{LAYERS}{2 * i + 1}.to_v_ip.weight"] = value
        return {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in named.items()}

    def adapter(self, path: Path) -> Adapter:
        """As it is now, as the rest of the package uses adapters; ``path`` is only a name."""
        tensors = self.tensors()
        return Adapter(identify({key: tuple(value.shape) for key, value in tensors.items()}, path), tensors, path)


def make(config: TrainConfig, layers: Sequence[Layer], encoder: EncoderSpec) -> TrainableAdapter:
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
    return TrainableAdapter(projection_of(config, layers[0].context, encoder), pairs)


def projection_of(config: TrainConfig, context: int, encoder: EncoderSpec) -> nn.Module:
    """A fresh projection of the config's variant, to tokens of width ``context``; the same for the same seed."""
    width = encoder.feature_width(FEATURES[config.variant])
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(config.seed)
    try:
        if config.variant == "base":
            return LinearProjection(width, config.tokens or TOKENS["base"], context)
        if config.variant == "full":
            return MLPProjection(width, context)
        dim = config.resampler_dim
        return Resampler(
            width, config.tokens or TOKENS["plus"], dim, config.resampler_heads * DIM_HEAD, 4 * dim,
            config.resampler_depth, context,
        )  # fmt: skip
    finally:
        torch.random.set_rng_state(generator_state)


def _loaded(config: TrainConfig, layers: Sequence[Layer], encoder: EncoderSpec) -> TrainableAdapter:
    path = Path(config.init)
    if config.attention == "concat":
        from ..standalone.concat import load_concat

        return TrainableAdapter(load_concat(path).projection.requires_grad_(True), [])
    adapter = _opened(path, layers)
    _check_encoder(adapter.spec, config, encoder, path)
    pairs = [adapter.weights(layer.position) for layer in layers]
    return TrainableAdapter(adapter.projection.requires_grad_(True), pairs)


def _opened(path: Path, layers: Sequence[Layer]) -> Adapter:
    file = open_adapter(path)
    adapter = Adapter(identify(file.shapes, path, file.encoder, file.known), file.tensors(), path)
    check_fit(adapter.spec, layers, path.name)
    return adapter


def _check_encoder(spec: VariantSpec, config: TrainConfig, encoder: EncoderSpec, path: Path) -> None:
    if spec.variant != config.variant:
        raise WrongBase(
            f"{path.name} is of variant {spec.variant}, the config says {config.variant}; change one, or begin "
            "with its K' "
            "and V' only: init_layers instead of init"
        )
    given = encoder.feature_width(spec.feature)
    if spec.feature_width != given or (spec.encoder and spec.encoder != encoder.name):
        raise WrongBase(
            f"{path.name} takes {spec.feature} features of {spec.encoder or 'some encoder'}, {spec.feature_width} "
            "wide, but "
            f"the encoder {encoder.name} gives {given}; give the one it was trained with"
        )
