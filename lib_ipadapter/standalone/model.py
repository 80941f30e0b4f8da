"""Checkpoint and yaml to the three parts of a latent diffusion model, without ldm's training classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.term import split_heads
from ..errors import ModelError
from ..files.tensors import open_tensors
from .config import Config
from .text import TextTower, build_text, load

LDM = "stable-diffusion-sdkit==2.1.5"
INSTALL = f"pip install --no-deps {LDM} && pip install einops open-clip-torch transformers"
T = TypeVar("T", bound=nn.Module)


class Autoencoder(nn.Module):
    """ldm's AutoencoderKL for use only: pictures [B, 3, H, W] in -1..1, latents [B, 4, H/8, W/8]."""

    def __init__(self, shape: Mapping[str, Any], embed_dim: int) -> None:
        super().__init__()
        from ldm.modules.diffusionmodules.model import Decoder, Encoder

        channels = shape["z_channels"]
        self.encoder, self.decoder = Encoder(**shape), Decoder(**shape)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, channels, 1)

    def encode(self, pictures: Tensor) -> Tensor:
        """The mean of the posterior, not scaled."""
        return self.posterior(pictures)[0]

    def posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the posterior, not scaled, each [B, 4, H/8, W/8]."""
        moments: Tensor = self.quant_conv(self.encoder(pictures))
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, (0.5 * log_variance.clamp(-30.0, 20.0)).exp()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents, not scaled, to pictures."""
        pictures: Tensor = self.decoder(self.post_quant_conv(latents))
        return pictures


@dataclass(frozen=True)
class Parts:
    """What a checkpoint holds; the UNet in the dtype asked for, the others in float32."""

    config: Config
    unet: Any
    autoencoder: Autoencoder
    text: TextTower


def load_ldm(state: Mapping[str, Tensor], read: Config, device: torch.device, dtype: torch.dtype) -> Parts:
    """SD1.x or SD2.x, from a checkpoint's tensors. Raises ModelError (they are not those of the config)."""
    unet = made(lambda: _unet(read), part(state, "model.diffusion_model.", dtype), "model.diffusion_model.")
    unet.dtype = dtype
    text = build_text(read, part(state, "cond_stage_model."))
    return Parts(read, unet.to(device), autoencoder(state, read).to(device), text.to(device))


def autoencoder(state: Mapping[str, Tensor], read: Config) -> Autoencoder:
    """That of the tensors below first_stage_model."""
    own = part(state, "first_stage_model.").items()
    return made(
        lambda: Autoencoder(read.autoencoder, read.embed_dim),
        {key: value for key, value in own if not key.startswith(("loss.", "model_ema."))},
        "first_stage_model.",
    )


def _unet(config: Config) -> Any:
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    return quick(UNetModel(**config.unet))


def quick(unet: T) -> T:
    """ldm writes its softmax out, [N, N] in memory; PyTorch's own attention is the same without."""
    for module in unet.modules():
        if type(module).__name__ == "CrossAttention":
            module.forward = MethodType(_attend, module)
    return unet


def _attend(module: Any, x: Tensor, context: Tensor | None = None, mask: None = None) -> Tensor:
    """CrossAttention.forward of ldm, which is never called with a mask."""
    context = x if context is None else context
    q, k, v = (split_heads(t, module.heads) for t in (module.to_q(x), module.to_k(context), module.to_v(context)))
    output: Tensor = module.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    return output


def require_ldm() -> None:
    """Raises ModelError."""
    try:
        import ldm.modules.diffusionmodules.openaimodel  # noqa: F401
        import open_clip  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise ModelError(f"{error.name or error} is not installed; run: {INSTALL}") from None


def state_of(path: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors; safely read, mapped and not copied."""
    tensors = open_tensors(path).tensors()
    plain = {key[len("state_dict.") :] if key.startswith("state_dict.") else key: v for key, v in tensors.items()}
    if not any(key.startswith("model.diffusion_model.") for key in plain):
        raise ModelError(
            f"{path.name}: no model.diffusion_model.* in it, so not a checkpoint of Stable Diffusion 1.x, 2.x or XL; "
            "give a checkpoint in the original layout (.safetensors or .ckpt)"
        )
    return plain


def part(state: Mapping[str, Tensor], prefix: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The tensors below a prefix, in ``dtype``."""
    own = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in own.items()}


def made(make: Callable[[], T], state: Mapping[str, Tensor], prefix: str) -> T:
    """A module with the tensors in it, frozen. Raises ModelError."""
    try:
        with torch.device("meta"):  # no time is spent on random weights
            module = make()
    except Exception as error:  # ldm raises all kinds: RuntimeError of a negative width, for one
        raise ModelError(
            f"the yaml's fields of {prefix}* cannot be used: {error!r}; use the checkpoint's own"
        ) from None
    load(module, state, prefix)
    return module.eval().requires_grad_(False)
