"""The ControlNet of one image prompt, whose tokens it attends to in the place of the text's (InstantID)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..adapters.variant import base_of_context
from ..attention.beside import Residuals, UNetCall
from ..attention.layers import Layer
from ..attention.prompt import Timing
from ..attention.region import Box, Region, Size
from ..attention.rows import Row
from ..encoders.precision import without_autocast
from ..errors import WrongBase
from .files import ControlNets, Loaded
from .layout import ControlSpec
from .network import ControlNet

_PIXELS = 8  # of a latent, in each direction
_KEPT = 256 << 20  # bytes of hints as features, on the device


class Hint(Protocol):
    """The picture that a ControlNet is given."""

    def at(self, size: Size, box: Box) -> NDArray[Any]:
        """The part ``box`` of the picture as RGB [height, width, 3] uint8 of this size in pixels."""


class Control:
    """``attention.beside.Beside`` of a ControlNet's file.

    spec: the file's; hints: of each of the job's pictures in turn; weight: of its outputs; timing: when it acts, within
    the prompt's own timing.
    """

    def __init__(
        self, nets: ControlNets, path: Path, spec: ControlSpec, hints: Sequence[Hint], weight: float, timing: Timing
    ) -> None:
        self.nets, self.path, self.spec = nets, path, spec
        self.hints, self.weight, self.timing = tuple(hints), weight, timing
        self._unet: Any = None
        self._loaded: Loaded | None = None
        self._features: dict[tuple[int, Box, Box], Tensor] = {}  # of the hints of calls like the last one
        self._like: tuple[Any, ...] = ()

    @property
    def file(self) -> str:
        """The name of its file."""
        return self.path.name

    def attach(self, unet: nn.Module, layers: Sequence[Layer]) -> None:
        """Reads the file, if it is not in memory. Raises WrongBase, FileError."""
        first = [layer for part in ("input", "middle") for layer in layers if layer.part == part]
        loaded = self.nets.load(self.path)
        check_fit(loaded.spec, first, self.path.name)  # the file's as it is now
        self._unet, self._loaded = unet, loaded
        self._loaded.network.with_heads([layer.heads for layer in first])
        self.resume()

    def resume(self) -> None:
        """Onto the device, where the host gives its memory away before it samples."""
        if self._loaded is None or self._loaded.device is not None:
            return
        device = self.nets.reserve(self._loaded.nbytes)
        if device is not None:
            self._loaded.early(device)

    def pause(self) -> None:
        """Off the device where memory is short."""
        if self._loaded is not None and self.nets.leaves():
            self._features.clear()
            self._loaded.offload()

    def detach(self) -> None:
        """The network goes where the setting says."""
        self._features.clear()
        loaded, self._loaded, self._unet = self._loaded, None, None
        if loaded is not None:
            self.nets.leave(loaded)

    def residuals(
        self, call: UNetCall, tokens: Tensor, weights: Tensor, region: Region | None, factor: float
    ) -> Residuals:
        """Of all rows of the call at once; masked by the region."""
        factor *= self.weight * self.timing.factor_at(call.fraction)
        if not factor or self._loaded is None:
            return ()
        device, dtype = call.latents.device, _computed_in(call.latents)
        network = self._loaded.at(device, dtype)
        with torch.no_grad(), without_autocast(device):
            sets = [row.tokens % len(tokens) for row in call.rows]
            keys = tokens.to(device, dtype)[sets]
            weighted = not bool((weights == 1).all())
            values = (tokens * weights[..., None].to(tokens)).to(device, dtype)[sets] if weighted else keys
            found = network(
                call.latents[:, : network.channels].to(dtype),
                self._hint(call, network, dtype),
                _timesteps(call),
                keys,
                _label(self._unet, call.inputs),
                values,
            )
            found = [_masked(one * factor, region, call) for one in found]
        if self.nets.leaves() == "call":
            self._features.clear()
            self._loaded.offload()
        return found

    def _hint(self, call: UNetCall, network: ControlNet, dtype: torch.dtype) -> Tensor:
        """The hint's features [rows, C, H, W], [1, C, H, W] if all are the same."""
        places = [(row.tokens // 2 % len(self.hints), row.box, row.tile) for row in call.rows]
        places = places[:1] if len(set(places)) == 1 else places
        like = (call.whole, call.size, dtype, call.latents.device)
        if like != self._like:
            self._like = like
            self._features.clear()
        found = {place: self._feature(place, call, network, dtype) for place in dict.fromkeys(places)}
        return torch.cat([found[place] for place in places])

    def _feature(self, place: tuple[int, Box, Box], call: UNetCall, network: ControlNet, dtype: torch.dtype) -> Tensor:
        """Kept as long as there is room: each step asks for the same ones, so the first are as good as the last."""
        if place in self._features:
            return self._features[place]
        which, box, tile = place
        whole = self.hints[which].at((_PIXELS * call.whole[0], _PIXELS * call.whole[1]), box)
        pixels = torch.from_numpy(cut(whole, call.size, tile).copy()).permute(2, 0, 1)[None]
        made: Tensor = network.input_hint_block(pixels.to(call.latents.device, dtype) / 255)
        size = made.numel() * made.element_size()
        if (len(self._features) + 1) * size <= _KEPT:
            self._features[place] = made
        return made


def cut(picture: NDArray[Any], size: Size, tile: Box) -> NDArray[Any]:
    """The part of a picture [H, W, 3] that belongs to a tile of latents of this size."""
    height, width = _PIXELS * size[0], _PIXELS * size[1]
    top = round(tile[1] * picture.shape[0] / _PIXELS) * _PIXELS
    left = round(tile[0] * picture.shape[1] / _PIXELS) * _PIXELS
    return picture[top : top + height, left : left + width]


def check_fit(spec: ControlSpec, layers: Sequence[Layer], name: str) -> None:
    """layers: of the UNet's input and middle blocks. Raises WrongBase unless they are the ControlNet's."""
    context, widths = layers[0].context, tuple(layer.width for layer in layers)
    if (spec.context, spec.widths) == (context, widths):
        return
    reason = (
        f"its tokens are {spec.context} wide and the model's {context}"
        if spec.context != context
        else f"it has {len(spec.widths)} cross-attention layers of other widths than the model's {len(widths)}"
    )
    raise WrongBase(
        f"the ControlNet {name} was made for {base_of_context(spec.context)}, but the loaded model is "
        f"{base_of_context(context)}: {reason}. Choose another under control_model, or none for the adapter alone",
        expected=f"a ControlNet for {base_of_context(context)}", value=name, field="control_model", file=name,
    )  # fmt: skip


def _computed_in(latents: Tensor) -> torch.dtype:
    """The dtype in which the UNet computes: autocast's, or the latents'."""
    if latents.device.type == "cuda" and torch.is_autocast_enabled():
        return torch.get_autocast_gpu_dtype()
    return latents.dtype


def _timesteps(call: UNetCall) -> Tensor:
    """[rows]; diffusers calls them "timestep", and gives one for all rows."""
    given = call.inputs.get("timesteps", call.inputs.get("timestep"))
    found = torch.as_tensor(given, device=call.latents.device).reshape(-1)
    return found.expand(len(call.latents)) if len(found) == 1 else found


def _label(unet: Any, inputs: Mapping[str, Any]) -> Tensor | None:
    """SDXL's pooled text and sizes [rows, label]. diffusers' UNet is given their parts."""
    added = inputs.get("added_cond_kwargs")
    if not added:
        return inputs.get("y")
    sizes = added["time_ids"]
    embedded = unet.add_time_proj(sizes.flatten()).reshape(len(sizes), -1)
    return torch.cat([added["text_embeds"], embedded.to(added["text_embeds"])], dim=-1)


def _masked(residual: Tensor, region: Region | None, call: UNetCall) -> Tensor:
    if region is None:
        return residual
    height, width = residual.shape[-2:]
    mask = region.of_rows(call.size, height * width, residual, _places(call.rows), (height, width))
    return residual * mask.transpose(1, 2).unflatten(-1, (height, width))


def _places(rows: Sequence[Row]) -> list[tuple[Box, Box]]:
    return [(row.box, row.tile) for row in rows]
