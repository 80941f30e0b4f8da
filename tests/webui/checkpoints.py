"""Small random checkpoints that the real WebUI loads. Run with the WebUI's own Python, in its folder:

    venv/bin/python checkpoints.py KIND OUT.safetensors

writes OUT.safetensors and OUT.yaml. The layouts are the real ones (16 cross-attention layers in SD1's
places, 70 in SDXL's), the widths are small, the weights random with a fixed seed and scaled so that a
picture depends on the noise, the text and the image prompt. Text towers are open_clip's small ones, whose
tokenizer comes with the package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CONTEXTS = {"ViT-S-32-alt": 256, "ViT-M-32-alt": 384}
AUTOENCODER = """
        double_z: true
        z_channels: 4
        resolution: 64
        in_channels: 3
        out_ch: 3
        ch: 32
        ch_mult: [1, 1, 1, 1]
        num_res_blocks: 1
        attn_resolutions: []
        dropout: 0.0
"""
LDM = """
model:
  target: ldm.models.diffusion.ddpm.{model}
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: {cond_stage_key}
    image_size: 64
    channels: 4
    cond_stage_trainable: false
    conditioning_key: {conditioning_key}
    monitor: val/loss_simple_ema
    scale_factor: 0.18215
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: {in_channels}
        out_channels: 4
        model_channels: 32
        attention_resolutions: [4, 2, 1]
        num_res_blocks: 2
        channel_mult: [1, 2, 4, 4]
        num_heads: 8
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {context}
        use_checkpoint: false
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:{autoencoder}        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
      params:
        arch: {arch}
        freeze: true
        layer: penultimate
"""
SGM = """
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    disable_first_stage_autocast: true
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        weighting_config:
          target: sgm.modules.diffusionmodules.denoiser_weighting.EpsWeighting
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling
        discretization_config:
          target: sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization
    network_config:
      target: sgm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        adm_in_channels: {adm}
        num_classes: sequential
        use_checkpoint: false
        in_channels: 4
        out_channels: 4
        model_channels: 32
        attention_resolutions: [4, 2]
        num_res_blocks: 2
        channel_mult: [1, 2, 4]
        num_head_channels: 16
        use_spatial_transformer: true
        use_linear_in_transformer: true
        transformer_depth: [1, 2, 10]
        context_dim: {context}
        spatial_transformer_attn_type: softmax-xformers
        legacy: false
    conditioner_config:
      target: sgm.modules.GeneralConditioner
      params:
        emb_models:
          - is_trainable: false
            input_key: txt
            target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2
            params:
              arch: {arch}
              freeze: true
              layer: penultimate
              always_return_pooled: true
              legacy: false
          - is_trainable: false
            input_key: original_size_as_tuple
            target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND
            params: {{outdim: 32}}
          - is_trainable: false
            input_key: crop_coords_top_left
            target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND
            params: {{outdim: 32}}
          - is_trainable: false
            input_key: target_size_as_tuple
            target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND
            params: {{outdim: 32}}
    first_stage_config:
      target: sgm.models.autoencoder.AutoencoderKLInferenceWrapper
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          attn_type: vanilla
          {autoencoder}
        lossconfig:
          target: torch.nn.Identity
"""
# kind: (family, text tower, seed, further fields of the yaml)
KINDS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "sd1": ("ldm", "ViT-S-32-alt", 1, {}),
    "sd1-other": ("ldm", "ViT-S-32-alt", 2, {}),
    "sd1-wide": ("ldm", "ViT-M-32-alt", 3, {}),  # another context: adapters of sd1 do not fit
    "pix2pix": ("ldm", "ViT-S-32-alt", 4, {
        "model": "LatentDiffusion", "in_channels": 8, "conditioning_key": "hybrid", "cond_stage_key": "edit"}),
    "sdxl": ("sgm", "ViT-S-32-alt", 5, {}),
    "sdxl-refiner": ("sgm", "ViT-M-32-alt", 6, {}),
    "controlnet": ("cldm", "ViT-S-32-alt", 7, {}),  # for sd1
}  # fmt: skip


def config_text(kind: str) -> str:
    """The yaml that the WebUI finds beside the checkpoint."""
    family, arch, _, fields = KINDS[kind]
    template = SGM if family == "sgm" else LDM
    values = {
        "arch": arch, "context": CONTEXTS[arch], "adm": CONTEXTS[arch] + 6 * 32, "in_channels": 4,
        "model": "LatentDiffusion", "conditioning_key": "crossattn", "cond_stage_key": "txt",
        "autoencoder": AUTOENCODER.replace("\n", "\n  ") + "\n" if family != "sgm"
        else AUTOENCODER.strip().replace("\n", "\n  "),
    }  # fmt: skip
    return template.format(**{**values, **fields}).strip() + "\n"


def randomise(module: Any) -> None:
    """No parameter that matters is zero: ldm zeroes its last convolutions, and nothing would come out."""
    import torch

    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


def state_dict(kind: str) -> dict[str, Any]:
    """The checkpoint's tensors in float16, under the names of its family."""
    import open_clip
    import torch
    import yaml

    family, arch, seed, _ = KINDS[kind]
    params = yaml.safe_load(config_text(kind))["model"]["params"]
    torch.manual_seed(seed)
    text = open_clip.create_model(arch)
    del text.visual
    # The WebUI divides by the mean of the text's embedding, which a fresh LayerNorm makes zero.
    torch.nn.init.normal_(text.ln_final.bias, mean=0.1)
    if family == "sgm":
        from sgm.modules.diffusionmodules.model import Decoder, Encoder
        from sgm.modules.diffusionmodules.openaimodel import UNetModel

        unet, prefix = UNetModel(**params["network_config"]["params"]), "conditioner.embedders.0.model."
    else:
        from ldm.modules.diffusionmodules.model import Decoder, Encoder
        from ldm.modules.diffusionmodules.openaimodel import UNetModel

        unet, prefix = UNetModel(**params["unet_config"]["params"]), "cond_stage_model.model."
    shape = params["first_stage_config"]["params"]["ddconfig"]
    parts = {
        "model.diffusion_model.": unet,
        "first_stage_model.encoder.": Encoder(**shape),
        "first_stage_model.decoder.": Decoder(**shape),
        "first_stage_model.quant_conv.": torch.nn.Conv2d(8, 8, 1),
        "first_stage_model.post_quant_conv.": torch.nn.Conv2d(4, 4, 1),
        prefix: text,
    }
    if family == "cldm":
        return control_state(unet)
    for module in parts.values():
        randomise(module)
    return {f"{p}{key}": value.half().contiguous() for p, m in parts.items() for key, value in m.state_dict().items()}


def control_state(unet: Any) -> dict[str, Any]:
    """A ControlNet: the UNet's encoder, a hint block and output convolutions, which are not zero here."""
    import torch

    channels = unet.model_channels
    widths = [channels * m for m in (1, 1, 1, 1, 2, 2, 2, 4, 4, 4, 4, 4)]
    hint = [(3, 16), (16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256), (256, channels)]
    parts = {
        "time_embed.": unet.time_embed, "input_blocks.": unet.input_blocks, "middle_block.": unet.middle_block,
        **{f"zero_convs.{i}.0.": torch.nn.Conv2d(w, w, 1) for i, w in enumerate(widths)},
        "middle_block_out.0.": torch.nn.Conv2d(widths[-1], widths[-1], 1),
        **{f"input_hint_block.{2 * i}.": torch.nn.Conv2d(a, b, 3) for i, (a, b) in enumerate(hint)},
    }  # fmt: skip
    for module in parts.values():
        randomise(module)
    return {
        f"control_model.{p}{key}": value.half().contiguous()
        for p, m in parts.items()
        for key, value in m.state_dict().items()
    }


def main() -> None:
    kind, out = sys.argv[1], Path(sys.argv[2])
    root = Path.cwd()
    sys.path[:0] = [
        str(root / "repositories" / name) for name in ("stable-diffusion-stability-ai", "generative-models")
    ]
    if KINDS[kind][0] == "sgm":
        # sgm imports parts of a training package that the WebUI fakes too (modules/paths.py).
        sys.modules["taming.modules.losses.lpips"] = type("Fake", (), {"LPIPS": None})()  # type: ignore[assignment]
        sys.modules["sgm.data"] = type("Fake", (), {"StableDataModuleFromConfig": None})()  # type: ignore[assignment]
    from safetensors.torch import save_file

    save_file(state_dict(kind), str(out))
    if KINDS[kind][0] != "cldm":
        out.with_suffix(".yaml").write_text(config_text(kind))


if __name__ == "__main__":
    main()
