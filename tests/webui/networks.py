"""A LoRA and a hypernetwork for the small models, random."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

CONTEXT = 256


def write_lora(path: Path) -> None:
    """A LoRA on to_q and to_out of two cross-attention layers: the very modules that the hooks are on."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for block, width in (("down_blocks_0", 32), ("up_blocks_3", 32)):
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
