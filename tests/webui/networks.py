"""Adapters, an encoder, a LoRA and a hypernetwork for the small models, random."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.synthetic import adapter_tensors, write_adapter

SD1_WIDTHS = (32, 32, 64, 64, 128, 128, 128, 128, 128, 64, 64, 64, 32, 32, 32, 128)
SDXL_WIDTHS = (64,) * 4 + (128,) * 20 + (128,) * 30 + (64,) * 6 + (128,) * 10
CONTEXT, EMBED = 256, 48


def write_lora(path: Path, width: int = 32) -> None:
    """A LoRA on to_q and to_out of two cross-attention layers: the very modules that the hooks are on."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for block in ("down_blocks_0", "up_blocks_3"):
        for layer in ("to_q", "to_out_0"):
            name = f"lora_unet_{block}_attentions_0_transformer_blocks_0_attn2_{layer}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(4, width, generator=generator)
            tensors[f"{name}.lora_up.weight"] = torch.randn(width, 4, generator=generator)
            tensors[f"{name}.alpha"] = torch.tensor(4.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def write_hypernetwork(path: Path) -> None:
    """A hypernetwork on the text's context."""
    generator = torch.Generator().manual_seed(0)

    def network() -> dict[str, torch.Tensor]:
        shapes = {"0.weight": (2 * CONTEXT, CONTEXT), "0.bias": (2 * CONTEXT,)}
        shapes |= {"1.weight": (CONTEXT, 2 * CONTEXT), "1.bias": (CONTEXT,)}
        return {f"linear.{k}": torch.randn(s, generator=generator) * 0.1 for k, s in shapes.items()}

    content = {
        CONTEXT: [network(), network()], "step": 1, "name": path.stem, "layer_structure": [1, 2, 1],
        "activation_func": "linear", "is_layer_norm": False, "weight_initialization": "Normal",
        "use_dropout": False, "activate_output": False, "sd_checkpoint": None, "sd_checkpoint_name": None,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def write_encoder(folder: Path, name: str = "tiny-vit") -> Path:
    """A tiny CLIP vision tower with its open_clip config beside it: pooled 48, penultimate 128 wide."""
    from open_clip.transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = VisionTransformer(
            image_size=32, patch_size=8, width=128, layers=3, heads=2, mlp_ratio=4.0, output_dim=EMBED
        )
    folder.mkdir(parents=True, exist_ok=True)
    # Strong attention and MLP weights, so that different pictures give clearly different features.
    state = {f"visual.{key}": value * (3.0 if value.ndim == 2 else 1.0) for key, value in tower.state_dict().items()}
    save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    vision = {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8}
    (folder / f"{name}.json").write_text(json.dumps({"embed_dim": EMBED, "vision_cfg": vision}))
    return folder / f"{name}.safetensors"


def write_adapters(folder: Path) -> None:
    """An adapter of each variant for the small models, and some that do not fit."""
    folder.mkdir(parents=True, exist_ok=True)
    for family, widths in {"sd1": SD1_WIDTHS, "sdxl": SDXL_WIDTHS}.items():
        for variant, width in {"base": EMBED, "plus": 128, "full": 128}.items():
            tensors = adapter_tensors(variant, CONTEXT, widths, width, seed=7)
            write_adapter(folder / f"{family}-{variant}.safetensors", tensors)
    write_adapter(folder / "pickled.bin", adapter_tensors("base", CONTEXT, SD1_WIDTHS, EMBED, seed=7), "pickle")
    write_adapter(folder / "wide.safetensors", adapter_tensors("base", 384, SD1_WIDTHS, EMBED))
    write_adapter(folder / "no-encoder.safetensors", adapter_tensors("base", CONTEXT, SD1_WIDTHS, 33))
    write_adapter(folder / "needs-vit-h.safetensors", adapter_tensors("base", CONTEXT, SD1_WIDTHS, 1024))
