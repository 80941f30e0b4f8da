"""Whether two UNet inputs are the same: rows of text, rows of latents, passes through the blocks."""

from __future__ import annotations

import torch
from torch import Tensor

_CHANNELS = 4  # of latents


def same_text(a: Tensor, b: Tensor) -> bool:
    """Whether text tokens [..., L, D] are equal as far as both go (a host may pad or cut them), in the coarser of
    their dtypes."""
    length = min(a.shape[-2], b.shape[-2])
    a, b = a[..., :length, :], b[..., :length, :]
    if a.shape != b.shape:
        return False
    dtype = a.dtype if a.element_size() < b.element_size() else b.dtype
    return torch.equal(a.to(dtype), b.to(a.device, dtype))


def same_pass(latents: Tensor, text: Tensor | None, hidden: Tensor, context: Tensor | None) -> bool:
    """Whether a pass through the blocks with ``hidden`` and ``context`` is that of the UNet call with ``latents`` and
    ``text``. Extensions strip a marker from the text, which leaves a view of it; some give the text on and replace the
    latents (ControlNet's reference-only), and their pass counts as the call's, but for what runs beside the UNet
    (``same_latents``)."""
    if len(hidden) != len(latents):
        return False
    if text is None or context is None or _shared(text, context):
        return True
    return same_text(text, context) and (_shared(latents, hidden) or _equal(latents, hidden))


def same_latents(latents: Tensor, hidden: Tensor) -> bool:
    """Whether a pass through the blocks with ``hidden`` shows the latents of the UNet call. Only their own channels
    count: for an inpainting model an extension may replace those that it has beside them."""
    return _shared(latents, hidden) or _equal(latents[:, :_CHANNELS], hidden[:, :_CHANNELS])


def _shared(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _equal(a: Tensor, b: Tensor) -> bool:
    dtype = a.dtype if a.element_size() < b.element_size() else b.dtype
    return a.shape == b.shape and torch.equal(a.to(dtype), b.to(a.device, dtype))


def distances(a: Tensor, b: Tensor) -> Tensor:
    """[n, m], float64 on the CPU: how far each of the rows of a [n, ...] is from those of b [m, ...], 0..1: the sine of
    the angle between them, so a positive factor does not count. Of more channels the first are compared."""
    channels = min(a.shape[1], b.shape[1])
    x, y = (t[:, :channels].detach().flatten(1).cpu().double() for t in (a, b))
    if x.shape[1] != y.shape[1]:
        return torch.ones(len(x), len(y), dtype=torch.float64)
    cosine = _unit(x) @ _unit(y).T
    return torch.where(cosine > 0, (1 - cosine.square()).clamp(min=0).sqrt(), 1.0)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
