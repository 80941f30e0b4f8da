"""Attaches image terms to the cross-attention layers of a UNet, and removes them.

The query is caught behind ``to_q`` and the term is added in front of ``to_out[0]``. So whatever happens between them
(attention optimisations, LoRA, forwards replaced by ControlNet or Regional Prompter, hypernetworks, upcasting) is
untouched, q is never computed twice, and removal restores the model bit for bit. ldm, sgm and diffusers UNets all
have both modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .layers import Layer
from .lowrank import Additions, add_low_rank
from .region import Size
from .term import Term, add_term

_INPUTS = ("x", "timesteps", "context")  # of an ldm UNet; diffusers calls the first "sample"


class Terms(Protocol):
    """Computes the terms of each layer, and is notified of UNet calls."""

    def call(self, latents: Tensor, kwargs: Mapping[str, Any]) -> None:
        """The UNet is called with these latents [rows, C, H, W] and these other inputs by name."""

    def enter(self, hidden: Tensor, context: Tensor | None) -> None:
        """A pass through the UNet's blocks begins with hidden states [rows, C, H, W] and text [rows, L, D]. Extensions
        that replace the UNet's forward may run several for one call."""

    def terms(self, layer: Layer, hidden: Tensor, query: Tensor, grid: Size | None) -> Sequence[Term]:
        """The terms for ``query`` [B, N, width] = to_q(``hidden``). grid: height and width of the layer's N tokens,
        where its block shows them."""


# Called with a layer and its own attention output Z [B, N, width] before the layer's terms are merged
Output = Callable[[Layer, Tensor], None]


class Hooks:
    """Hooks on one UNet; ``remove`` takes all of them off. The constructor registers all or none.

    output: see ``Output``; additions: low-rank updates of the layers' projections, by layer number (lowrank.py). They
    are registered first, so that the query is caught with them.
    """

    def __init__(
        self,
        unet: nn.Module,
        layers: Sequence[Layer],
        terms: Terms,
        output: Output | None = None,
        additions: Additions | None = None,
    ) -> None:
        self.unet = unet
        self._terms = terms
        self._output = output
        self._additions = additions or {}
        self._pending: dict[int, Sequence[Term]] = {}
        self._grids: dict[int, Size] = {}  # by id of the block
        self._handles: list[RemovableHandle] = []
        try:
            self._handles += add_low_rank(layers, self._additions, self._grids)
            self._register(unet, layers)
        except BaseException:
            self.remove()
            raise

    def _register(self, unet: nn.Module, layers: Sequence[Layer]) -> None:
        add = self._handles.append
        add(unet.register_forward_pre_hook(self._on_call, with_kwargs=True))
        first = next(iter(getattr(unet, "input_blocks", ())), None)
        if first is not None:
            add(first.register_forward_pre_hook(self._on_first, with_kwargs=True))
        for block in {id(layer.block): layer.block for layer in layers if layer.block is not None}.values():
            add(block.register_forward_pre_hook(self._on_block, with_kwargs=True))
        for layer in layers:
            add(layer.module.to_q.register_forward_hook(self._catch(layer)))
            add(layer.module.to_out[0].register_forward_pre_hook(self._merge(layer)))

    def remove(self) -> None:
        """Takes every hook off. Calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pending.clear()
        self._grids.clear()

    def _on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._pending.clear()
        inputs = {**dict(zip(_INPUTS, args, strict=False)), **kwargs}
        self._terms.call(inputs.pop("x") if "x" in inputs else inputs.pop("sample"), inputs)

    def _on_first(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # ldm and sgm: (h, emb, context); Forge: transformer_options behind them
        inputs = args[1:3]
        self._terms.enter(args[0], kwargs.get("context", inputs[-1] if inputs else None))

    def _on_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("x", kwargs.get("hidden_states"))
        self._grids.pop(id(module), None)
        if isinstance(hidden, Tensor) and hidden.dim() == 4:
            self._grids[id(module)] = (hidden.shape[2], hidden.shape[3])

    def _catch(self, layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        block = id(layer.block)

        def hook(module: nn.Module, args: tuple[Tensor, ...], query: Tensor) -> None:
            terms = self._terms.terms(layer, args[0], query, self._grids.get(block))
            if terms:
                self._pending[layer.position] = terms

        return hook

    def _merge(self, layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            terms = self._pending.pop(layer.position, None)
            if terms is None:
                return None
            own = hidden = args[0]
            if self._output is not None:
                self._output(layer, own)
            for term in terms:
                hidden = add_term(hidden, term.value if term.merge is None else term.merge(own, term.value))
            return hidden, *args[1:]

        return hook
