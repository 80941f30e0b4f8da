"""What a session's prompts bring along to run beside the UNet (beside.py), on the UNet that is sampled with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from torch import nn

from .beside import ResidualHooks, Residuals, UNetCall
from .keyvalue import KeyValue
from .layers import Layer


class Companions:
    """Those of some prompts. active: those of the prompts that act in the step, none where a pass is to be left alone;
    noting: around what may raise; acted: ids of prompts, and of what they bring along, are added to it."""

    def __init__(
        self, prompts: Sequence[KeyValue], active: Callable[[], Sequence[KeyValue]],
        noting: Callable[[], AbstractContextManager[None]], acted: set[int],
    ) -> None:  # fmt: skip
        self._call: UNetCall | None = None
        self._prompts = [kv for kv in prompts if kv.prompt.beside is not None]
        self._active, self._noting, self._acted = active, noting, acted
        self._hooks: ResidualHooks | None = None
        self._known: Residuals | None = None  # the outputs in the call, None before they are asked for

    @property
    def call(self) -> UNetCall | None:
        """The running one; None: not to be changed."""
        return self._call

    @call.setter
    def call(self, call: UNetCall | None) -> None:
        self._call, self._known = call, None  # the last one's take hundreds of MB of the device

    @property
    def any(self) -> bool:
        """Whether any prompt brings something along."""
        return bool(self._prompts)

    def attach(self, unet: nn.Module, layers: Sequence[Layer]) -> None:
        """On this UNet. Raises as ``Beside.attach``, and then nothing is attached."""
        if not self._prompts:
            return
        self._hooks = ResidualHooks(unet, self._residuals)
        try:
            for kv in self._prompts:
                assert kv.prompt.beside is not None
                kv.prompt.beside.attach(unet, layers)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Off the UNet. Calling it again does nothing."""
        self.call = None
        if self._hooks is None:
            return
        self._hooks.remove()
        self._hooks = None
        for kv in self._prompts:
            assert kv.prompt.beside is not None
            kv.prompt.beside.detach()

    def pause(self) -> None:
        """No call follows for a while."""
        for kv in self._prompts if self._hooks else ():
            assert kv.prompt.beside is not None
            kv.prompt.beside.pause()

    def resume(self) -> None:
        """Calls follow soon."""
        for kv in self._prompts if self._hooks else ():
            assert kv.prompt.beside is not None
            kv.prompt.beside.resume()

    def _residuals(self) -> Residuals:
        """What is added to the UNet's blocks in this call, of all prompts that act: computed once."""
        if self.call is None or not self._active():
            return ()
        if self._known is None:
            self._known = ()
            with self._noting():
                self._known = self._sum(self.call)
        return self._known

    def _sum(self, call: UNetCall) -> Residuals:
        total: Residuals = ()
        for kv in self._active():
            prompt = kv.prompt
            if kv in self._prompts and prompt.beside is not None:
                found = prompt.beside.residuals(call, prompt.tokens, prompt.token_weights, prompt.region, kv.factor)
                self._acted.update([id(prompt), id(prompt.beside)] if found else [])
                total = [a + b for a, b in zip(total, found, strict=True)] if total and found else total or found
        return total
