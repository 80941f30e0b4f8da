"""What runs beside a UNet for an image prompt, and adds to the UNet's blocks: a ControlNet.

Its outputs, one for each input block and one for the middle block, are added by hooks: to the middle block's output,
and to that part of an output block's input which is an input block's output. So the UNet's forward may be anyone's
(the WebUI's, a fork's, one that another extension put in its place), what others add is added too, and removal restores
the model bit for bit. ldm, sgm and diffusers UNets all have such blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .layers import Layer
from .region import Region, Size
from .rows import Row

# The outputs of a call, one [B, C, h, w] for each input block in order, then the middle block's; () for none
Residuals = Sequence[Tensor]
_NAMES = ("x", "hidden_states", "input_tensor")


@dataclass(frozen=True)
class UNetCall:
    """A call of the UNet in a step. latents: [rows, C, H, W]; inputs: the others by name; rows: what each row is;
    whole: height and width of the step's latents, of which the call may show a tile; fraction: 0..1 of the sampling."""

    latents: Tensor
    inputs: Mapping[str, Any]
    rows: tuple[Row, ...]
    whole: Size
    fraction: float

    @property
    def size(self) -> Size:
        """Height and width of the latents."""
        return self.latents.shape[-2], self.latents.shape[-1]


class Beside(Protocol):
    """What a prompt brings along."""

    @property
    def file(self) -> str:
        """The name of the file that it is read from, as errors about it have it."""

    def attach(self, unet: nn.Module, layers: Sequence[Layer]) -> None:
        """It will run beside this UNet with these layers. Raises WrongBase, FileError."""

    def residuals(
        self, call: UNetCall, tokens: Tensor, weights: Tensor, region: Region | None, factor: float
    ) -> Residuals:
        """tokens: [S, T, context] of the prompt, by token set; weights: of each token's values, [T] or [S, T]; region:
        where it acts; factor: the prompt's in this step, without its weight."""

    def pause(self) -> None:
        """No call follows for a while, and the host may want the memory."""

    def resume(self) -> None:
        """Calls follow soon, and the host has not filled the device yet."""

    def detach(self) -> None:
        """The UNet is no longer sampled with."""


class ResidualHooks:
    """Adds ``residuals()`` to the blocks of one UNet, () for nothing; ``remove`` takes the hooks off."""

    def __init__(self, unet: nn.Module, residuals: Callable[[], Residuals]) -> None:
        self._residuals = residuals
        middle, outputs = blocks_of(unet)
        self._handles: list[RemovableHandle] = [_parts(middle)[-1].register_forward_hook(self._on_middle)]
        for place, block in enumerate(outputs):
            hook = self._on_output(len(outputs) - 1 - place)
            self._handles.append(_parts(block)[0].register_forward_pre_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        """Takes every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _on_middle(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        found = self._residuals()
        return output + _as(found[-1], output) if found else None

    def _on_output(self, place: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
        """place: of the input block whose output is the last part of the block's input."""

        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            found = self._residuals()
            if not found:
                return None
            if args:
                return (_added(args[0], found[place]), *args[1:]), kwargs
            name = next(name for name in _NAMES if name in kwargs)
            return args, {**kwargs, name: _added(kwargs[name], found[place])}

        return hook


def blocks_of(unet: Any) -> tuple[nn.Module, list[nn.Module]]:
    """The middle block, and what is called with the output of an input block, in order."""
    if hasattr(unet, "output_blocks"):
        return unet.middle_block, list(unet.output_blocks)
    return unet.mid_block, [resnet for block in unet.up_blocks for resnet in block.resnets]


def _parts(block: nn.Module) -> list[nn.Module]:
    """What is called in turn: reForge calls the modules in a block, and never the block."""
    return list(block) if isinstance(block, nn.Sequential) else [block]


def _as(residual: Tensor, like: Tensor) -> Tensor:
    """In the dtype of what it is added to, and in its size where an extension has rescaled a block."""
    if residual.shape[-2:] != like.shape[-2:]:
        residual = F.interpolate(residual, size=like.shape[-2:], mode="bilinear")
    return residual.to(like.dtype)


def _added(hidden: Tensor, residual: Tensor) -> Tensor:
    """To the last channels of [B, C, h, w], which belongs to the host."""
    hidden = hidden.clone()
    hidden[:, -residual.shape[1] :] += _as(residual, hidden)
    return hidden
