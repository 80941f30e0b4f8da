"""L_simple over a frozen base: the loss of one batch.

arXiv 2308.06721, 3.2.2: E‖ε - ε_θ(x_t, c_text, c_image, t)‖², only the adapter trained, image, text or both
dropped for classifier-free guidance. All randomness of a picture is drawn from its own generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.hooks import Hooks
from .adapter import TrainableAdapter, name_of
from .base import Base, Sizes, Text
from .config import TrainConfig
from .terms import TrainLoRA, TrainTerms


@dataclass(frozen=True)
class Draws:
    """The random draws of a batch. noise [B, 4, h, w]; spread [B, 4, h, w], of the posterior;
    times [B]; no_image, no_text [B] bool."""

    noise: Tensor
    spread: Tensor
    times: Tensor
    no_image: Tensor
    no_text: Tensor


def draw(generators: Sequence[torch.Generator], shape: Sequence[int], timesteps: int, config: TrainConfig) -> Draws:
    """From one generator per picture; ``shape``: of one latent. On the CPU, so that all devices draw the same."""
    noise = torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])
    spread = torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])
    times = torch.cat([torch.randint(0, timesteps, (1,), generator=g) for g in generators])
    fate = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    image_only, text_only = config.drop_image, config.drop_image + config.drop_text
    both = (fate >= text_only) & (fate < text_only + config.drop_both)
    no_text = (fate >= image_only) & (fate < text_only)
    if config.noise_offset:  # of each channel as a whole, so that a picture's mean is learned, too
        offset = torch.stack([torch.randn((shape[0], 1, 1), generator=g) for g in generators])
        noise = noise + config.noise_offset * offset
    return Draws(noise, spread, times, (fate < image_only) | both, no_text | both)


class Denoiser(nn.Module):
    """The adapter around the frozen base. Its only parameters are the adapter's, over which gradients are averaged."""

    def __init__(self, base: Base, adapter: TrainableAdapter, concat: bool) -> None:
        super().__init__()
        self.adapter = adapter
        self._base = base  # not an nn.Module, so its weights are not registered
        self._concat = concat
        self._terms = TrainTerms(adapter)
        lora = {place: TrainLoRA(self._terms, name_of(place)) for place in adapter.places}
        self._hooks = None if concat else Hooks(base.unet, base.layers, self._terms, additions=lora)

    def remove(self) -> None:
        """Removes the hooks from the base."""
        if self._hooks:
            self._hooks.remove()

    def rest(self) -> None:
        """Turns the adapter off until the next forward."""
        self._terms.tokens = None

    def forward(self, x: Tensor, t: Tensor, text: Text, sizes: Sizes | None, features: Tensor) -> Tensor:
        """The output [B, 4, h, w] for noised latents x and image features [B, E] or [B, N, W]."""
        # DeepSpeed keeps the parameters in half precision, and casts no inputs.
        dtype = next(self.adapter.projection.parameters()).dtype
        tokens: Tensor = self.adapter.projection(features.to(dtype))
        if self._concat:
            text = Text(torch.cat([text.tokens, tokens.to(text.tokens.dtype)], dim=1), text.pooled)
        self._terms.tokens = tokens
        return self._base.predict(x, t, text, sizes)


def loss(base: Base, denoiser: nn.Module, moments: Tensor, captions: Sequence[str], features: Tensor,
         nothing: Tensor, sizes: Sizes | None, draws: Draws, weighting: str = "none",
         cached: tuple[Text, Text] | None = None) -> Tensor:  # fmt: skip
    """Mean squared error against ε, or v, over the batch, weighted per picture by ``weights_of``.

    moments [B, 8, h, w]: mean and std of the scaled latents; features: of the references;
    nothing: the feature without a picture, [1, ...], where the image is dropped; cached: the texts of the captions and
    the empty one, where they are known already.
    """
    device = base.device
    mean, deviation = moments.to(device).chunk(2, dim=1)
    clean = mean + deviation * draws.spread.to(device)
    noise, times = draws.noise.to(device), draws.times.to(device)
    alpha = base.alphas[draws.times].to(device)[:, None, None, None]
    x = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean if base.v else noise
    if cached is None:
        dropped = draws.no_text.tolist()
        text = base.text(["" if gone else caption for caption, gone in zip(captions, dropped, strict=True)])
    else:
        text = chosen(*cached, draws.no_text, device)
    keep = ~draws.no_image.to(device).reshape(-1, *[1] * (features.ndim - 1))
    seen = torch.where(keep, features.to(device), nothing.to(device))
    errors = F.mse_loss(denoiser(x, times, text, sizes, seen), target, reduction="none").mean((1, 2, 3))
    return (weights_of(alpha.flatten(), base.v, weighting) * errors).mean()


def chosen(text: Text, empty: Text, dropped: Tensor, device: torch.device) -> Text:
    """``text`` with the rows of ``empty`` where it is dropped [B]."""
    gone = dropped.to(device)
    tokens = torch.where(gone[:, None, None], empty.tokens.to(device), text.tokens.to(device))
    if text.pooled is None or empty.pooled is None:
        return Text(tokens)
    return Text(tokens, torch.where(gone[:, None], empty.pooled.to(device), text.pooled.to(device)))


def weights_of(alphas: Tensor, v: bool, weighting: str) -> Tensor:
    """The weight of the squared error of ε, or of v, at ᾱ [B]. Except for none, ε and v count an error of the latents
    alike.

    none: 1; min-snr: min(SNR, 5) times the latents' squared error (arXiv 2303.09556), less for the last details;
    debiased: √SNR times it, 1/√SNR times that of ε (arXiv 2310.08442), more where the noise is high, which decides on
    the whole.
    """
    if weighting == "none":
        return torch.ones_like(alphas)
    snr = alphas / (1 - alphas)
    counts = snr.clamp(max=5) if weighting == "min-snr" else snr.sqrt()
    return counts / (snr + 1 if v else snr)
