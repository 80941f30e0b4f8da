"""Writes a random checkpoint of SD1.5's real shape in half precision: python real_checkpoint.py FILE."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import torch
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

AUTOENCODER: dict[str, Any] = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def randomised(module: nn.Module) -> nn.Module:
    """No parameter that matters is zero: ldm zeroes its last convolutions, and nothing would come out."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return module


def parts() -> dict[str, nn.Module]:
    """The model's modules by the prefix of their keys."""
    with contextlib.redirect_stdout(io.StringIO()):
        unet = UNetModel(
            image_size=32, in_channels=4, out_channels=4, model_channels=320, attention_resolutions=[4, 2, 1],
            num_res_blocks=2, channel_mult=[1, 2, 4, 4], num_heads=8, use_spatial_transformer=True,
            transformer_depth=1, context_dim=768, use_checkpoint=False, legacy=False,
        )  # fmt: skip
        encoder, decoder = Encoder(**AUTOENCODER), Decoder(**AUTOENCODER)
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=768,
    )  # fmt: skip
    return {
        "model.diffusion_model": unet, "first_stage_model.encoder": encoder, "first_stage_model.decoder": decoder,
        "first_stage_model.quant_conv": nn.Conv2d(8, 8, 1), "first_stage_model.post_quant_conv": nn.Conv2d(4, 4, 1),
        "cond_stage_model.transformer": CLIPTextModel(text),
    }  # fmt: skip


def main(path: str) -> None:
    torch.manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for prefix, module in parts().items():
        for name, value in randomised(module).state_dict().items():
            tensors[f"{prefix}.{name}"] = (value.half() if value.dtype == torch.float32 else value).contiguous()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    tensors["alphas_cumprod"] = torch.cumprod(1 - betas, 0).float()
    save_file(tensors, path, {"format": "pt"})


if __name__ == "__main__":
    main(sys.argv[1])
