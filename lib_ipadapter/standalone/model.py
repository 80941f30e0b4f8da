"""Checkpoint and yaml to the three parts of a latent diffusion model, without ldm's training classes."""

from __future__ import annotations

import contextlib
import io
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
from .config import Config, read_config
from .text import TextTower, build_text, load

INSTALL = "pip install --no-deps stable-diffusion-sdkit==2.1.5 && pip install einops open-clip-torch transformers"
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


def load_parts(checkpoint: Path | str, config: Path | str, device: torch.device, dtype: torch.dtype) -> Parts:
    """Raises FileError (either file), ModelError (they do not belong together, ldm is absent)."""
    read = read_config(config)
    with contextlib.redirect_stdout(io.StringIO()):  # ldm prints as it is imported and built
        return _load(Path(checkpoint), read, device, dtype)


def _load(checkpoint: Path, read: Config, device: torch.device, dtype: torch.dtype) -> Parts:
    _require_ldm()
    state = _state(checkpoint)
    unet = _made(lambda: _unet(read), _part(state, "model.diffusion_model.", dtype), "model.diffusion_model.")
    unet.dtype = dtype
    stage = _made(
        lambda: Autoencoder(read.autoencoder, read.embed_dim),
        {k: v for k, v in _part(state, "first_stage_model.").items() if not k.startswith(("loss.", "model_ema."))},
        "first_stage_model.",
    )
    text = build_text(read, _part(state, "cond_stage_model."))
    return Parts(read, unet.to(device), stage.to(device), text.to(device))


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


def _require_ldm() -> None:
    try:
        import ldm.modules.diffusionmodules.openaimodel  # noqa: F401
        import open_clip  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise ModelError(f"{error.name or error} is not installed; run: {INSTALL}") from None


def _state(path: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors; safely read, mapped and not copied."""
    tensors = open_tensors(path).tensors()
    plain = {key[len("state_dict.") :] if key.startswith("state_dict.") else key: v for key, v in tensors.items()}
    if not any(key.startswith("model.diffusion_model.") for key in plain):
        raise ModelError(
            f"{path.name}: no model.diffusion_model.* in it, so not a checkpoint of Stable Diffusion 1.x or 2.x; "
            "give a checkpoint in the original layout (.safetensors or .ckpt)"
        )
    return plain


def _part(state: Mapping[str, Tensor], prefix: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    part = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in part.items()}


def _made(make: Callable[[], T], state: Mapping[str, Tensor], prefix: str) -> T:
    try:
        with torch.device("meta"):  # no time is spent on random weights
            module = make()
    except (TypeError, KeyError, ValueError, AssertionError) as error:
        raise ModelError(
            f"the yaml's fields of {prefix}* cannot be used: {error!r}; use the checkpoint's own"
        ) from None
    load(module, state, prefix)
    return module.eval().requires_grad_(False)
