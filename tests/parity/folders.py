"""Small random models as diffusers saves them: SD1.5's parts, and SDXL's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WIDTH = 64  # of a text tower
VAE = dict(
    block_out_channels=(32, 32, 32, 32), latent_channels=4, layers_per_block=1, norm_num_groups=32,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip
UNETS = {
    "sd15": dict(
        block_out_channels=(32, 64, 64, 64), attention_head_dim=8, cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    ),
    "sdxl": dict(
        block_out_channels=(32, 64, 64), attention_head_dim=(2, 4, 4), transformer_layers_per_block=(1, 1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    ),
}  # fmt: skip


def tokenizer(folder: Path) -> Any:
    """transformers' CLIPTokenizer, its files made from open_clip's vocabulary."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    own = SimpleTokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        token.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): i
        for token, i in own.encoder.items()
    }
    (folder / "vocab.json").write_text(json.dumps(names), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in own.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def write(folder: Path, kind: str, prediction: str = "epsilon") -> Path:
    """A pipeline's folder: unet, vae, text_encoder(s), tokenizer(s), scheduler, model_index.json."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    text = dict(hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4)
    config = CLIPTextConfig(**text, projection_dim=WIDTH, bos_token_id=49406, eos_token_id=49407, pad_token_id=1)
    parts: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel(sample_size=8, layers_per_block=1, **UNETS[kind]),
        "vae": diffusers.AutoencoderKL(**VAE),
        "text_encoder": CLIPTextModel(config),
        "tokenizer": tokenizer(folder.with_name("vocabulary")),
        "scheduler": diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
        ),
    }
    if kind == "sdxl":
        parts |= {"text_encoder_2": CLIPTextModelWithProjection(config), "tokenizer_2": parts["tokenizer"]}
        pipeline = diffusers.StableDiffusionXLPipeline(**parts)
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.save_pretrained(folder)
    return folder
