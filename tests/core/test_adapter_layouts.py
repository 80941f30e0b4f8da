"""Adapters as the field has them: other key styles, wrapped, in any order, with other things beside."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save_file

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.adapters.file import open_adapter
from lib_ipadapter.adapters.inspect import report
from lib_ipadapter.cli import main
from lib_ipadapter.errors import BrokenAdapter, FileError, UnsupportedAdapter
from tests.synthetic import adapter_tensors, nested

# diffusers' UNet registers down, up and mid; names as numbers sort (2 before 10)
PLACES = [
    *(f"down_blocks.{b}.attentions.{a}.transformer_blocks.{t}" for b in (0, 2, 10) for a in (0, 1) for t in (0, 2, 10)),
    *(f"up_blocks.{b}.attentions.{a}.transformer_blocks.0" for b in (1, 3) for a in (0, 1, 2)),
    *(f"mid_block.attentions.0.transformer_blocks.{t}" for t in (0, 9, 10)),
]
FLAT = adapter_tensors(widths=[8 * (1 + n % 3) for n in range(len(PLACES))], context=16, feature_width=12)
LAYERS = {key: value for key, value in FLAT.items() if key.startswith("ip_adapter.")}
PROJECTION = {key: value for key, value in FLAT.items() if key not in LAYERS}


def processors(root: str = "unet.", index: str = "") -> dict[str, torch.Tensor]:
    found = {}
    for n, place in enumerate(PLACES):
        for kind in ("to_k_ip", "to_v_ip"):
            value = LAYERS[f"ip_adapter.{2 * n + 1}.{kind}.weight"]
            found[f"{root}{place}.attn2.processor.{kind}{index}.weight"] = value
    return found


def renamed(flat: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {key.replace(old, new, 1): value for key, value in flat.items()}


def frozen(root: str = "unet.") -> dict[str, torch.Tensor]:
    """What a UNet has beside; the first and the third layer of attn2 too, and an attn1."""
    keys = ["conv_in.weight", "time_embedding.linear_1.bias", f"{PLACES[0]}.attn2.to_q.weight",
    f"{PLACES[0]}.attn1.to_q.weight",
            f"{PLACES[2]}.attn2.to_out.0.bias", "down_blocks.0.resnets.0.conv1.weight",
            "conv_norm_out.bias"]  # fmt: skip
    return {f"{root}{key}": torch.ones(3, 2) for key in keys}


TRAINER = renamed(PROJECTION, "image_proj.", "image_proj_model.")
DIFFUSERS = renamed(
    renamed(PROJECTION, "image_proj.", "encoder_hid_proj.image_projection_layers.0."),
    "0.proj.",
    "0.image_embeds.",
)
STYLES: dict[str, dict[str, torch.Tensor]] = {
    "standard": FLAT,
    "layers under the UNet's names only": {**TRAINER, **processors(), **frozen()},
    "both names of each "
    "layer": {**TRAINER, **renamed(LAYERS, "ip_adapter.", "adapter_modules."), **processors(), **frozen()},
    "some layers under each name": {
        **TRAINER, **processors(), **dict(list(renamed(LAYERS, "ip_adapter.", "adapter_modules.").items())[::3]),
    },
    "diffusers": {**DIFFUSERS, **processors("", ".0"), **frozen("")},
    "diffusers of before several adapters": {
        **renamed(DIFFUSERS, "image_projection_layers.0.", ""), **processors(""), **frozen(""),
    },
    "diffusers below unet.": {**renamed(DIFFUSERS, "encoder", "unet.encoder"), **processors("unet.", ".0"), **frozen()},
}  # fmt: skip
WRAPPERS = ["", "model.", "state_dict.", "module.", "module.model.", "state_dict._orig_mod."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_the_same_adapter(tmp_path, style, wrapper):
    content = [(f"{wrapper}{key}", value.clone()) for key, value in STYLES[style].items()]
    random.Random(style + wrapper).shuffle(content)
    torch.save(dict(content), tmp_path / "a.bin")
    save_file(dict(content), tmp_path / "a.safetensors")
    for name in ("a.bin", "a.safetensors"):
        file = open_adapter(tmp_path / name)
        tensors = file.tensors()
        assert tensors.keys() == FLAT.keys()
        assert all(torch.equal(tensors[key], FLAT[key]) for key in FLAT)
        assert Adapter.load(tmp_path / name).spec.widths == tuple(8 * (1 + n % 3) for n in range(len(PLACES)))
        accounted = {
            *(own for owns in file._source.values() for own in owns),
            *(key for keys in file.unused.values() for key in keys),
        }
        assert accounted == {key for key, _ in content}


BESIDE = {
    "scalar": {"ip_scaler": torch.tensor(0.5), "global_step": torch.tensor(7), "image_proj.scale": torch.ones(1)},
    "image encoder": {"clip.vision_model.embeddings.class_embedding": torch.ones(4)},
    "LoRA": {"lora_unet_down_blocks_0_attn1_to_q.lora_down.weight": torch.ones(4, 4),
    "unet.down_blocks.0.attn1.to_q.lora.up.weight": torch.ones(4, 4)},
    "text encoder": {"text_encoder.text_model.embeddings.position_embedding.weight": torch.ones(4, 4)},
    "VAE": {"vae.decoder.conv_in.weight": torch.ones(4, 4)},
    "training state": {"optimizer.state.0.exp_avg": torch.ones(4, 4)},
    "base model": {"unet.conv_in.weight": torch.ones(4, 4)},
}  # fmt: skip


@pytest.mark.parametrize("kind", BESIDE)
def test_what_stands_beside_is_named_and_stops_nothing(tmp_path, kind, capsys):
    torch.save({**nested(FLAT), **BESIDE[kind]}, tmp_path / "a.bin") if kind != "scalar" else torch.save(
        {**FLAT, **BESIDE[kind]}, tmp_path / "a.bin"
    )
    assert Adapter.load(tmp_path / "a.bin").weights(0)[0].shape == (8, 16)
    (found,) = report(tmp_path / "a.bin")["unused"].items()
    assert (found[0], sorted(found[1])) == (kind, sorted(BESIDE[kind]))
    assert main(["inspect", str(tmp_path / "a.bin")]) == 0
    assert f"not used     {kind} ({found[1][0]}" in capsys.readouterr().out


def changed(change: Callable[[dict], object]) -> dict[str, torch.Tensor]:
    flat = dict(STYLES["diffusers"])
    change(flat)
    return flat


REFUSED = {
    "two adapters": (changed(lambda f: f.update(processors("", ".1"))), UnsupportedAdapter, "several adapters in "
                                                                                            "one file"),
    "two projections": (changed(lambda f: f.update(renamed(DIFFUSERS, "layers.0", "layers.1"))), UnsupportedAdapter,
    "several adapters"),
    "two wrappers": ({**FLAT, **{f"model.{key}": value for key, value in FLAT.items()}}, BrokenAdapter,
    "two sets of weights"),
    "a layer that is missing": (changed(lambda f: f.pop(f"{PLACES[2]}.attn2.processor.to_v_ip.0.weight")),
    BrokenAdapter,
                                r"missing: ip_adapter\.5\.to_v_ip"),
    "something unknown": ({**FLAT, "gate.weight": torch.ones(2, 2)}, BrokenAdapter, r"left over: gate\.weight"),
    "something unknown in a layer": ({**FLAT, "ip_adapter.1.gate": torch.ones(1)}, BrokenAdapter,
    r"left over: ip_adapter\.1\.gate"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_told_is_refused(tmp_path, what):
    flat, error, reason = REFUSED[what]
    torch.save(flat, tmp_path / "a.bin")
    with pytest.raises(error, match=reason):
        Adapter.load(tmp_path / "a.bin")


def test_face_adapters_keep_their_name(tmp_path):
    """FaceID carries its LoRA under the numbers of all layers, even ones too (facts: 256 + 32 keys)."""
    lora = {
        key.removeprefix("ip_adapter."): value
        for key, value in adapter_tensors("faceid", 16, (8, 8), lora=2).items()
        if "_lora." in key
    }
    layers = {f"{n}.{kind}.weight": torch.ones(8, 16) for n in (1, 3) for kind in ("to_k_ip", "to_v_ip")}
    projection = {"proj.0.weight": torch.ones(1024, 512), "proj.0.bias": torch.ones(1024),
    "proj.2.weight": torch.ones(64,
    1024),
                  "proj.2.bias": torch.ones(64), "norm.weight": torch.ones(16),
                  "norm.bias": torch.ones(16)}  # fmt: skip
    torch.save({"image_proj": projection, "ip_adapter": {**lora, **layers}}, tmp_path / "a.bin")
    spec = Adapter.load(tmp_path / "a.bin").spec
    assert (spec.variant, spec.lora_rank) == ("faceid", 2)
    in_diffusers = {"ff.net.0.proj.weight": torch.ones(1024, 512), "ff.net.0.proj.bias": torch.ones(1024),
                    "ff.net.2.weight": torch.ones(64, 1024), "ff.net.2.bias": torch.ones(64),
                    "norm.weight": torch.ones(16),
                    "norm.bias": torch.ones(16)}  # fmt: skip
    hidden = {f"encoder_hid_proj.image_projection_layers.0.{key}": value for key, value in in_diffusers.items()}
    torch.save({**hidden, **processors("", ".0")}, tmp_path / "b.bin")
    spec = Adapter.load(tmp_path / "b.bin").spec
    assert (spec.variant, spec.lora_rank) == ("faceid", 0)


def test_a_whole_checkpoint_is_still_named_as_one(tmp_path):
    torch.save({"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2)}}, tmp_path / "a.ckpt")
    torch.save({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2)}, tmp_path / "b.ckpt")
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(FileError, match="no IP-Adapter but a whole Stable Diffusion checkpoint"):
            Adapter.load(tmp_path / name)
