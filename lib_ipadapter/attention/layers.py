"""The cross-attention layers of a UNet, in the order in which adapter files number them.

An adapter file numbers attention layers down, up, middle (diffusers registers the middle block last):
``ip_adapter.N.to_k_ip.weight`` with N = 2·i + 1 belongs to the i-th cross-attention layer in that
order, even N being self-attention. ldm and sgm UNets list their blocks input, middle, output, so the
order is made here, from the UNet at hand, for any depth and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from ..adapters.variant import VariantSpec, base_of_context
from ..errors import UnsupportedModel, WrongBase
from ..unit.weights import LayerCounts, LayerRule, LayerWeight

# Part of the UNet by the name of its child module: ldm and sgm on the left, diffusers on the right.
PARTS = {
    "input_blocks": "input",
    "down_blocks": "input",
    "output_blocks": "output",
    "up_blocks": "output",
    "middle_block": "middle",
    "mid_block": "middle",
}
FILE_ORDER = ("input", "output", "middle")
_BLOCKS = ".transformer_blocks."  # of a spatial transformer


@dataclass(frozen=True)
class Layer:
    """One cross-attention layer.

    position: 0-based index in file order; width: columns of q; context: width of the text tokens; heads: number of
    attention heads; part: "input", "middle" or "output"; name: dotted name in the UNet; block: the spatial transformer
    that holds it, called with [B, C, H, W], or None; self_attention: attn1 beside it, or None.
    """

    position: int
    name: str
    part: str
    module: Any  # has to_q, to_k and to_out[0]; ldm, sgm and diffusers share no class
    width: int
    context: int
    heads: int
    block: Any = None
    self_attention: Any = None

    @property
    def number(self) -> int:
        """N in the file's key ``N.to_k_ip.weight``; attn1 beside it has N - 1."""
        return 2 * self.position + 1


def cross_attention_layers(unet: nn.Module) -> list[Layer]:
    """Every attn2 of ``unet`` in file order. Raises UnsupportedModel when there is none."""
    found: dict[str, list[tuple[str, Any]]] = {part: [] for part in FILE_ORDER}
    for child_name, part in PARTS.items():
        child = getattr(unet, child_name, None)
        if child is not None:
            found[part] += [(f"{child_name}.{name}", m) for name, m in child.named_modules() if _is_cross(name, m)]
    ordered = [(part, name, module) for part in FILE_ORDER for name, module in found[part]]
    if not ordered:
        raise UnsupportedModel(
            f"{type(unet).__name__} has no cross-attention layer (attn2) that an image prompt could act in; "
            "use a checkpoint of Stable Diffusion 1.x, 2.x or XL"
        )
    return [_layer(unet, i, *item) for i, item in enumerate(ordered)]


def _is_cross(name: str, module: nn.Module) -> bool:
    # By the name's suffix and not by type: ToMe and others swap the classes of blocks.
    return name.rpartition(".")[2] == "attn2" and all(hasattr(module, n) for n in ("to_q", "to_k", "to_out"))


def _layer(unet: nn.Module, position: int, part: str, name: str, module: Any) -> Layer:
    parent, block = name.rpartition(".")[0], name.partition(_BLOCKS)[0]
    return Layer(
        position=position,
        name=name,
        part=part,
        module=module,
        width=_width(module),
        context=_context(unet, module),
        heads=module.heads,
        block=unet.get_submodule(block) if _BLOCKS in name else None,
        self_attention=getattr(unet.get_submodule(parent), "attn1", None),
    )


def _width(module: Any) -> int:
    """Columns of q. Quantised Linears (NF4, GGUF) have no ``out_features``."""
    return int(getattr(module.to_q, "out_features", 0) or module.heads * module.dim_head)


def _context(unet: nn.Module, module: Any) -> int:
    """Width of the text tokens. Quantised Linears have no ``in_features``; the UNet's config tells then."""
    config = getattr(unet, "config", None)
    said = config.get("context_dim", 0) if isinstance(config, Mapping) else getattr(config, "context_dim", 0)
    width = getattr(module.to_k, "in_features", 0) or said
    if not width:
        raise UnsupportedModel(
            f"{type(module.to_k).__name__} does not tell how wide the model's text tokens are; load the checkpoint in "
            "another format"
        )
    return int(width)


def check_fit(spec: VariantSpec, layers: Sequence[Layer], label: str) -> None:
    """Raises WrongBase unless the adapter's layers are those of the model at hand."""
    context = layers[0].context
    widths = tuple(layer.width for layer in layers)
    if spec.context == context and spec.widths == widths:
        return
    if spec.context != context:
        reason = f"text tokens are {context} wide in the model and {spec.context} in the adapter"
    elif len(spec.widths) != len(widths):
        reason = f"the model has {len(widths)} cross-attention layers and the adapter {len(spec.widths)}"
    else:
        at = next(i for i, pair in enumerate(zip(widths, spec.widths, strict=True)) if pair[0] != pair[1])
        reason = f"layer {at} is {widths[at]} wide in the model and {spec.widths[at]} in the adapter"
    raise WrongBase(
        f"{label} was made for {spec.base}, but the loaded model is {base_of_context(context)}: {reason}. "
        "Choose an adapter made for this model, or load a checkpoint that fits the adapter",
        expected=f"an adapter for {base_of_context(context)}",
        value=spec.base,
        field="model",
        model=label,
    )


@lru_cache(maxsize=16)
def _ordered(names: tuple[tuple[str, str], ...]) -> tuple[tuple[int, ...], LayerCounts]:
    # attn2 of all depths of one spatial transformer belong together.
    owners = [name.partition(_BLOCKS)[0] for name, _ in names]
    groups: dict[str, list[str]] = {"input": [], "middle": [], "output": []}
    for owner, (_, part) in zip(owners, names, strict=True):
        if owner not in groups[part]:
            groups[part].append(owner)
    in_order = groups["input"] + groups["middle"] + groups["output"]
    middle = len(groups["input"])
    counts = LayerCounts(len(in_order), middle, middle + len(groups["middle"]))
    return tuple(in_order.index(owner) for owner in owners), counts


def execution_order(layers: tuple[Layer, ...]) -> tuple[tuple[int, ...], LayerCounts]:
    """(t of each layer, by its place in file order; the model's layer counts)."""
    return _ordered(tuple((layer.name, layer.part) for layer in layers))


def layer_weights(rule: LayerRule, weight: float, layers: Sequence[Layer]) -> tuple[LayerWeight, ...]:
    """What ``rule`` makes of λ = ``weight`` at each layer, by its position in file order. Raises as
    ``LayerRule.at``."""
    order, counts = execution_order(tuple(layers))
    weights = rule.at(weight, counts)
    return tuple(weights[t] for t in order)
