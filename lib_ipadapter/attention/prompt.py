"""ImagePrompt: one unit, ready to run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..adapters.adapter import Adapter
from ..unit.weights import ALWAYS, EVENLY, Curve, LayerRule
from .beside import Beside
from .correction import Correction
from .region import Region

_ROUNDING = 1e-6  # of fractions: 3 calls of 10 is 0.3, however it was divided


@dataclass(frozen=True)
class Timing:
    """The weight over the sampling.

    start, end: fractions between which the prompt acts (end = 1: up to the last call); curve: factor over the
    sampling; first, hires: factor in the first pass and in the pass of hires fix.
    """

    start: float = 0.0
    end: float = 1.0
    curve: Curve = ALWAYS
    first: float = 1.0
    hires: float = 1.0

    def factor_at(self, fraction: float, hires: bool = False) -> float:
        """The factor in a call at ``fraction`` 0..1 of the sampling; 0: the prompt does not act."""
        begun = fraction > self.start - _ROUNDING
        ended = self.end < 1.0 and fraction > self.end - _ROUNDING
        if not begun or ended:
            return 0.0
        return self.curve.at(fraction) * self.of_pass(hires)

    def of_pass(self, hires: bool) -> float:
        """The factor of the first pass, or of the hires pass; 0: the prompt does not act in it."""
        return self.hires if hires else self.first


_ALWAYS = Timing()


@dataclass(frozen=True)
class ImagePrompt:
    """One unit, ready to run.

    tokens: [S, T, context] float32, the token sets: (COND, UNCOND), or such a pair for each of several pictures;
    token_weights: [T] or [S, T], factor of each token's V', the weight of its reference; weight: of the unit, λ in the
    paper; rule: the weight over the layers; timing: the weight over the sampling; region: where in the picture, None
    for everywhere; scaling: what the weight scales, one of unit.SCALINGS; label: the name in errors; maps: number of
    references, side by side in the tokens, whose heat maps are recorded, 0 for none; merge: how the term is corrected
    against the layer's own output, None for not at all; key: identifies adapter, tokens and token_weights, so that K'
    and V' may be kept beyond the job, None: they are not; lora: strength of the LoRA that the adapter brings along, if
    any; beside: what runs beside the UNet for it, such as InstantID's ControlNet.
    """

    adapter: Adapter
    tokens: Tensor
    token_weights: Tensor
    weight: float = 1.0
    rule: LayerRule = EVENLY
    timing: Timing = _ALWAYS
    region: Region | None = None
    scaling: str = "V only"
    label: str = "the adapter"
    maps: int = 0
    merge: Correction | None = None
    key: Hashable = None
    lora: float = 1.0
    beside: Beside | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that it is read from, as errors have them."""
        return (self.adapter.path.name, *((self.beside.file,) if self.beside else ()))


def acting(prompts: Sequence[ImagePrompt]) -> tuple[ImagePrompt, ...]:
    """Those whose weight is not 0, with which the base model is unchanged."""
    return tuple(prompt for prompt in prompts if prompt.weight)
