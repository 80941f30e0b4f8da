"""Files that are no adapter that runs: other image-prompt adapters, and other kinds of files, each by its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .layout import LAYERS, Shape

Shapes = Mapping[str, Shape]
Test = Callable[[Shapes], bool]


def _has(*parts: str) -> Test:
    return lambda shapes: all(any(part in key for key in shapes) for part in parts)


def _starts(*prefixes: str) -> Test:
    return lambda shapes: any(key.startswith(prefixes) for key in shapes)


def _width_in(shapes: Shapes) -> int:
    return shapes.get("image_proj.proj_in.weight", (0, 0))[-1]


def _is_kolors(shapes: Shapes) -> bool:
    return _width_in(shapes) == 1024 and shapes.get("image_proj.layers.0.0.to_out.weight", (0,))[0] == 2048


def _is_kolors_face_id(shapes: Shapes) -> bool:
    """Its face tokens are as wide as Kolors' text encoder, which the UNet's K projects before they are used."""
    norm = shapes.get("image_proj.norm.weight", (0,))[0]
    layers = [shape[-1] for key, shape in shapes.items() if key.endswith(".to_k_ip.weight")]
    return _has("image_proj.perceiver_resampler.")(shapes) and bool(layers) and norm != layers[0] and norm == 4096


def _is_clip_face(shapes: Shapes) -> bool:
    """Its norm stands in front of the MLP and is as wide as the embedding; FaceID's is as wide as a token."""
    norm, first = shapes.get("image_proj.norm.weight", (0,)), shapes.get("image_proj.proj.0.weight", (0, 0))
    return first == (2 * norm[0], norm[0]) and "image_proj.proj.2.weight" in shapes and norm[0] > 0


def _is_of_transformer(shapes: Shapes) -> bool:
    """A UNet's cross-attention layers have odd numbers only."""
    return all(f"{LAYERS}{number}.to_k_ip.weight" in shapes for number in (0, 1))


def _has_token_factors(shapes: Shapes) -> bool:
    """One factor a layer is merged as the file is read (aitoolkit.py)."""
    return any(key.startswith(LAYERS) and key.endswith(".ip_scaler") for key in shapes)


UNSUPPORTED: tuple[tuple[Test, str, str], ...] = (
    (_starts("pulid_encoder.", "pulid_ca."), "PuLID for Flux", "a Flux model, which the WebUI does not run"),
    (_has("double_blocks."), "an IP-Adapter for Flux", "a Flux model, which the WebUI does not run"),
    (_has("norm_ip.linear"), "an IP-Adapter for SD3", "a model with joint attention and a SigLIP encoder"),
    (_is_kolors_face_id, "an IP-Adapter FaceID for Kolors", "the Kolors model, which the WebUI does not run"),
    (_is_kolors, "an IP-Adapter for Kolors", "the Kolors model, which the WebUI does not run"),
    (_starts("ip_scale."), "a set of factors that ai-toolkit trained for another adapter (train_scaler)",
     "that adapter's file, with the factors in it: train with merge_scaler: true"),
    (_has_token_factors, "an adapter of ai-toolkit with a factor for each token (ip_scaler)",
     "these factors at each step; save it with merge_scaler: true"),
    (_has("image_proj.ctx_alpha."), "an adapter of ai-toolkit's kind ipz", "ai-toolkit's own projection"),
    (_starts("preprocessor."), "an adapter of ai-toolkit's encoder clip+",
     "the preprocessor in it, which sees a square of four times the side"),
    (_is_clip_face, "an adapter of ai-toolkit's kind ip_clip_face", "ai-toolkit's own projection"),
    (_is_of_transformer, "an adapter of ai-toolkit for a transformer (PixArt, Flux)",
     "such a model, which the WebUI does not run"),
)  # fmt: skip

FOREIGN: tuple[tuple[Test, str], ...] = (
    (_has("lora_"), "a LoRA"),
    (_has("hada_w1"), "a LoRA (LoHa)"),
    (_has("lokr_w1"), "a LoRA (LoKr)"),
    (_starts("control_model.", "controlnet_", "input_hint_block."), "a ControlNet"),
    (_has("input_hint_block."), "a ControlNet"),
    (_has("body.0.block1."), "a T2I-Adapter"),
    (_starts("adapter.body.", "body.0."), "a T2I-Adapter"),
    (_has("motion_modules."), "an AnimateDiff motion module"),
    (
        _starts("model.diffusion_model.", "state_dict.model.diffusion_model."),
        "a whole Stable Diffusion checkpoint",
    ),
    (_starts("diffusion_model.", "input_blocks.", "down_blocks."), "a UNet"),
    (
        _starts("vision_model.", "visual.", "clip_vision"),
        "a CLIP image encoder (put it into models/clip_vision)",
    ),
    (_starts("text_model.", "cond_stage_model.", "conditioner.", "transformer.text"), "a text encoder"),
    (_starts("first_stage_model.", "decoder.", "encoder.down"), "a VAE"),
    (_starts("emb_params", "string_to_param", "clip_l", "clip_g"), "a textual inversion embedding"),
)


def foreign(shapes: Shapes) -> str:
    """What a file is that has no adapter's keys."""
    for test, name in FOREIGN:
        if test(shapes):
            return name
    keys = ", ".join(list(shapes)[:3])
    return (
        f"a file of {len(shapes)} tensors ({keys}{', ...' if len(shapes) > 3 else ''})" if shapes else "an empty file"
    )
