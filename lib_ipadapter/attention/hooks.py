"""Attaches an image term to the cross-attention layers of a UNet, and takes it off again.

The query is caught behind ``to_q`` and the term is added in front of ``to_out[0]``. So whatever stands
between them (any attention optimisation, LoRA, ControlNet's or Regional Prompter's own forwards,
hypernetworks, upcasting) stays as it is, q is never computed twice, and removal restores the model bit
for bit. ldm, sgm and diffusers UNets all have both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .layers import Layer
from .term import add_term


class Terms(Protocol):
    """What the hooks ask: the terms of one layer, and news of each UNet call."""

    def call(self, sample: Tensor) -> None:
        """The UNet is called with these latents [rows, C, H, W]."""

    def term(self, layer: Layer, hidden: Tensor, query: Tensor) -> Tensor | None:
        """The term [B, N, width] for ``query`` [B, N, width] = to_q(``hidden``), or None for none."""


# Is shown, after a term was made, what the layer's own attention gave: Z [B, N, width] in front of ``to_out``
See = Callable[[Layer, Tensor], None]


class Hooks:
    """Hooks on one UNet; ``remove`` takes all of them off. Making them is all or nothing."""

    def __init__(
        self, unet: nn.Module, layers: Sequence[Layer], terms: Terms, see: See | None = None
    ) -> None:
        self.unet = unet
        self._terms = terms
        self._see = see
        self._pending: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = [
            unet.register_forward_pre_hook(self._on_call, with_kwargs=True)
        ]
        try:
            for layer in layers:
                self._handles.append(layer.module.to_q.register_forward_hook(self._catch(layer)))
                self._handles.append(layer.module.to_out[0].register_forward_pre_hook(self._add(layer)))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Takes every hook off. Calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pending.clear()

    def _on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._pending.clear()
        # ldm names it x, diffusers sample.
        sample: Tensor = args[0] if args else kwargs["x" if "x" in kwargs else "sample"]
        self._terms.call(sample)

    def _catch(self, layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], query: Tensor) -> None:
            term = self._terms.term(layer, args[0], query)
            if term is not None:
                self._pending[layer.position] = term

        return hook

    def _add(self, layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            term = self._pending.pop(layer.position, None)
            if term is None:
                return None
            if self._see is not None:
                self._see(layer, args[0])
            return add_term(args[0], term), *args[1:]

        return hook
