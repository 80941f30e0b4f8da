"""What Stability's own code (sgm), as the WebUI has it, makes of an SDXL file of the shape of tests/sdxl_file.py. Run
with the WebUI's own Python, in its folder:

    venv/bin/python sdxl_reference.py FILE.safetensors INPUTS.safetensors OUT.safetensors

INPUTS: x, times, sizes, ids (padded with the end, for CLIP), zeros (padded with 0, for open_clip), pixels, latents.
OUT: tokens, pooled, conditions, predicted, moments (mean and log variance, not scaled), decoded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

WIDTH, EMBED, SIZE_WIDTH = 64, 96, 16


def main() -> None:
    file, inputs, out = sys.argv[1:4]
    root = Path.cwd()
    sys.path[:0] = [
        str(root / "repositories" / name) for name in ("stable-diffusion-stability-ai", "generative-models")
    ]
    # sgm imports parts of a training package that the WebUI fakes too (modules/paths.py).
    sys.modules["taming.modules.losses.lpips"] = type("Fake", (), {"LPIPS": None})()  # type: ignore[assignment]
    sys.modules["sgm.data"] = type("Fake", (), {"StableDataModuleFromConfig": None})()  # type: ignore[assignment]
    import torch
    from safetensors.torch import load_file, save_file

    state, given = load_file(file), load_file(inputs)
    with torch.no_grad():
        found = {**texts(state, given), **stage(state, given)}
        found |= unet(state, given, found["tokens"], found["pooled"])
    save_file({name: value.contiguous() for name, value in found.items()}, out)


def below(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def texts(state: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    import open_clip
    import torch
    from sgm.modules.encoders.modules import FrozenOpenCLIPEmbedder2
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=1,
        hidden_act="quick_gelu",
    )
    first = CLIPTextModel(config).eval()
    first.load_state_dict(below(state, "conditioner.embedders.0.transformer."), strict=False)
    # FrozenCLIPEmbedder with layer hidden, the last but one
    hidden = first(input_ids=given["ids"], output_hidden_states=True).hidden_states[2]
    second = FrozenOpenCLIPEmbedder2.__new__(FrozenOpenCLIPEmbedder2)
    torch.nn.Module.__init__(second)
    second.model = open_clip.CLIP(
        EMBED, {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32},
        {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 1, "layers": 3},
    ).eval()  # fmt: skip
    del second.model.visual
    second.model.load_state_dict(below(state, "conditioner.embedders.1.model."), strict=False)
    second.layer, second.legacy = "penultimate", False
    out = second.encode_with_transformer(given["zeros"])
    return {"tokens": torch.cat([hidden, out["penultimate"]], -1), "pooled": out["pooled"]}


def unet(state: dict[str, Any], given: dict[str, Any], tokens: Any, pooled: Any) -> dict[str, Any]:
    import torch
    from sgm.modules.diffusionmodules.openaimodel import UNetModel
    from sgm.modules.encoders.modules import ConcatTimestepEmbedderND

    embed = ConcatTimestepEmbedderND(SIZE_WIDTH)
    y = torch.cat([pooled, *(embed(given["sizes"][:, i : i + 2]) for i in (0, 2, 4))], 1)
    model = UNetModel(
        adm_in_channels=EMBED + 6 * SIZE_WIDTH, num_classes="sequential", use_checkpoint=False, in_channels=4,
        out_channels=4, model_channels=32, attention_resolutions=[4, 2], num_res_blocks=1, channel_mult=[1, 2, 4],
        num_head_channels=64, use_spatial_transformer=True, use_linear_in_transformer=True, transformer_depth=[1, 1, 2],
        context_dim=2 * WIDTH, spatial_transformer_attn_type="softmax", legacy=False,
    ).eval()  # fmt: skip
    model.load_state_dict(below(state, "model.diffusion_model."))
    return {"conditions": y, "predicted": model(given["x"], given["times"], context=tokens, y=y)}


def stage(state: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    import torch
    from sgm.modules.diffusionmodules.model import Decoder, Encoder

    shape: dict[str, Any] = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    own = below(state, "first_stage_model.")
    encoder, decoder = Encoder(**shape).eval(), Decoder(**shape).eval()
    encoder.load_state_dict(below(own, "encoder."))
    decoder.load_state_dict(below(own, "decoder."))
    quant, post = torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(4, 4, 1)
    quant.load_state_dict(below(own, "quant_conv."))
    post.load_state_dict(below(own, "post_quant_conv."))
    return {"moments": quant(encoder(given["pixels"])), "decoded": decoder(post(given["latents"]))}


if __name__ == "__main__":
    main()
