"""The passes of a job, and the UNet's layers in each as far as they are known before it begins."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..adapters.variant import VariantSpec
from ..attention.layers import FILE_ORDER, PARTS, Layer, check_fit, cross_attention_layers, layer_weights
from ..prompts.image_prompt import prompt_fields
from ..unit import Unit

if TYPE_CHECKING:
    from .hosts.base import Host, Shapes

_QUERY = re.compile(r"(?:model\.diffusion_model\.)?((\w+)\..*\.attn2)\.to_q\.weight")


@dataclass(frozen=True)
class Pass:
    """One pass of a job. layers: of its UNet in file order, None if they are not known before it is loaded."""

    hires: bool
    layers: Sequence[Layer] | None

    def check(self, unit: Unit, spec: VariantSpec) -> None:
        """Raises WrongBase, and UnitError for layers that the UNet does not have, if the unit acts in this pass."""
        rule, timing = prompt_fields(unit)
        if self.layers is None or not timing.of_pass(self.hires):
            return
        check_fit(spec, self.layers, unit.model)
        layer_weights(rule, unit.weight, self.layers)


def passes_of(p: Any, host: Host) -> tuple[Pass, ...]:
    """The passes that ``p`` will sample. To be called before it begins. Raises UnsupportedModel."""
    host.check(p, sampling=False)
    coming = host.coming()  # not loaded yet where Forge upscales a finished picture
    layers = (layers_in(coming.shapes() or {}) or None) if coming else cross_attention_layers(host.unet())
    first = () if only_hires(p) else (Pass(False, layers),)
    if not getattr(p, "enable_hr", False):
        return first
    return (*first, Pass(True, _hires_layers(p, host) if host.hires_differs(p) else layers))


def only_hires(p: Any) -> bool:
    """Whether the job upscales a finished picture, so that its first pass is left out."""
    return getattr(p, "firstpass_image", None) is not None and bool(getattr(p, "enable_hr", False))


def idle(p: Any, unit: Unit) -> str:
    """Why a unit acts in no pass of the job, "" if it acts in one."""
    timing = prompt_fields(unit)[1]
    hires = bool(getattr(p, "enable_hr", False))
    if any(timing.of_pass(one) for one in ((True,) if only_hires(p) else (False, True) if hires else (False,))):
        return ""
    if unit.passes == "hires" and not hires:
        return "it acts in the hires pass only, and this job has no hires fix, so the picture is without it"
    return "it acts in no pass of this job (see its passes and hires factor), so the picture is without it"


def _hires_layers(p: Any, host: Host) -> list[Layer] | None:
    shapes = host.hires_shapes(p)
    return (layers_in(shapes) if shapes else None) or None


def layers_in(shapes: Shapes) -> list[Layer]:
    """The cross-attention layers that a checkpoint's tensors speak of, without modules, in file order; [] for a layout
    other than ldm's and sgm's."""
    found = sorted(_queries(shapes), key=_place)
    return [
        Layer(i, name, PARTS[part], None, shapes[key][0], shapes[_key_of(key)][1], 0)
        for i, (key, name, part) in enumerate(found)
        if _key_of(key) in shapes
    ]


def _queries(shapes: Shapes) -> Iterator[tuple[str, str, str]]:
    """(key, layer's name, part of the UNet) of each."""
    for key in shapes:
        match = _QUERY.fullmatch(key)
        if match and match[2] in PARTS:
            yield key, match[1], match[2]


def _key_of(query: str) -> str:
    return query.replace(".to_q.", ".to_k.")


def _place(found: tuple[str, str, str]) -> tuple[int, list[int]]:
    """Parts in file order, blocks in a part by number."""
    _, name, part = found
    return FILE_ORDER.index(PARTS[part]), [int(number) for number in re.findall(r"\d+", name)]
