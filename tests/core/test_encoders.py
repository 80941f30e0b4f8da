"""Encoders on a small tower: layouts, features, files of all kinds."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter.encoders import (
    ENCODERS,
    EncoderSpec,
    ImageEncoder,
    for_feature,
    identify_encoder,
    register,
)
from lib_ipadapter.encoders import spec as spec_module
from lib_ipadapter.encoders.layout import tower_shapes
from lib_ipadapter.errors import BrokenEncoder, EncoderError, EncoderMissing, ImageError, UnsafeFile
from tests.tiny_tower import TINY, Weights, as_hugging_face, as_open_clip, picture, tiny_weights, without

pytestmark = pytest.mark.usefixtures("tiny_registered")


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


LAYOUTS: dict[str, tuple[str, Callable[[Weights, Path], None]]] = {
    "Hugging Face, safetensors": ("model.safetensors", lambda w, p: save_file(as_hugging_face(w), p)),
    "Hugging Face, as clip_h.pth": ("clip_h.pth", lambda w, p: torch.save(as_hugging_face(w), p)),
    "Hugging Face, old pickle": ("pytorch_model.bin", lambda w, p: legacy(as_hugging_face(w), p)),
    "open_clip, safetensors": ("open_clip.safetensors", lambda w, p: save_file(as_open_clip(w), p)),
    "open_clip, pickle": ("open_clip_pytorch_model.bin", lambda w, p: torch.save(as_open_clip(w), p)),
    "open_clip, bare": ("visual.safetensors", lambda w, p: save_file(w, p)),
    "open_clip, bare pickle": ("visual.pt", lambda w, p: torch.save(w, p)),
    "open_clip, training checkpoint": (
        "epoch_1.pt",
        lambda w, p: torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in as_open_clip(w).items()}}, p),
    ),
}


# features


def plain(weights: Weights, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled and penultimate by the formulas alone (Dosovitskiy et al. 2020, CLIP's pre-norm)."""
    norm = torch.nn.functional.layer_norm
    width, heads = TINY.width, TINY.heads

    def ln(x: Tensor, name: str) -> Tensor:
        return norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def attend(x: Tensor, name: str) -> Tensor:
        q, k, v = (x @ weights[f"{name}.in_proj_weight"].t() + weights[f"{name}.in_proj_bias"]).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        share = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1)
        merged = (share @ v).transpose(1, 2).flatten(2)
        return merged @ weights[f"{name}.out_proj.weight"].t() + weights[f"{name}.out_proj.bias"]

    def mlp(x: Tensor, name: str) -> Tensor:
        hidden = x @ weights[f"{name}.c_fc.weight"].t() + weights[f"{name}.c_fc.bias"]
        hidden = torch.nn.functional.gelu(hidden)
        return hidden @ weights[f"{name}.c_proj.weight"].t() + weights[f"{name}.c_proj.bias"]

    patches = torch.nn.functional.conv2d(pixels, weights["conv1.weight"], stride=TINY.patch)
    tokens = torch.cat([weights["class_embedding"].view(1, 1, -1), patches.flatten(2).transpose(1, 2)], 1)
    x = before = ln(tokens + weights["positional_embedding"], "ln_pre")
    for n in range(TINY.layers):
        before, block = x, f"transformer.resblocks.{n}"
        x = x + attend(ln(x, f"{block}.ln_1"), f"{block}.attn")
        x = x + mlp(ln(x, f"{block}.ln_2"), f"{block}.mlp")
    return ln(x[:, 0], "ln_post") @ weights["proj"], before


def test_features_are_those_of_the_formulas(tiny_file: Path) -> None:
    encoder = ImageEncoder.load(tiny_file)
    values = torch.from_numpy(np.asarray(picture()).astype(np.float64) / 255)
    pixels = ((values - torch.tensor(TINY.mean)) / torch.tensor(TINY.std)).permute(2, 0, 1)[None].float()
    pooled, penultimate = plain(tiny_weights(), pixels)
    found = encoder.encode(picture())
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.penultimate, penultimate, rtol=1e-4, atol=1e-4)
    assert found.pooled.shape == (1, TINY.embed_dim)
    assert found.penultimate.shape == (1, TINY.tokens, TINY.width)


def test_unconditional_features(tiny_file: Path) -> None:
    """Zero pooled; penultimate of zero normalised pixels, which is not that of a black picture."""
    encoder = ImageEncoder.load(tiny_file)
    found = encoder.unconditional()
    assert torch.equal(found.pooled, torch.zeros(1, TINY.embed_dim))
    _, penultimate = plain(tiny_weights(), torch.zeros(1, 3, 32, 32))
    torch.testing.assert_close(found.penultimate, penultimate, rtol=1e-4, atol=1e-4)
    black = encoder.encode(Image.new("RGB", (32, 32))).penultimate
    assert not torch.allclose(found.penultimate, black, atol=1e-2)


def test_one_feature_alone_is_the_same_and_skips_the_last_block(tiny_file: Path) -> None:
    encoder = ImageEncoder.load(tiny_file)
    both = encoder.encode(picture())
    assert torch.equal(encoder.encode(picture(), "pooled").of("pooled"), both.pooled)
    runs: list[int] = []
    for number, block in enumerate(encoder.tower.transformer.resblocks):
        block.register_forward_hook(lambda *_args, number=number: runs.append(number))
    assert torch.equal(encoder.encode(picture(), "penultimate").of("penultimate"), both.penultimate)
    assert runs == [0, 1]


def test_hosts_autocast_changes_nothing(tiny_file: Path) -> None:
    encoder = ImageEncoder.load(tiny_file)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoder.encode(picture())
    assert torch.equal(found.penultimate, encoder.encode(picture()).penultimate)


def test_half_precision_gives_float32_close_to_it(tiny_file: Path) -> None:
    full = ImageEncoder.load(tiny_file).encode(picture())
    half = ImageEncoder.load(tiny_file, dtype=torch.bfloat16).encode(picture())
    assert half.pooled.dtype == half.penultimate.dtype == torch.float32
    assert float((half.penultimate - full.penultimate).norm() / full.penultimate.norm()) < 0.03


def test_no_gradient_is_kept(tiny_file: Path) -> None:
    encoder = ImageEncoder.load(tiny_file)
    with torch.enable_grad():
        found = encoder.encode(picture())
    assert not found.pooled.requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.tower.parameters())


def test_quick_gelu_is_the_specs_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(tiny_weights(), tmp_path / "a.safetensors")
    exact = ImageEncoder.load(tmp_path / "a.safetensors").encode(picture()).pooled
    monkeypatch.setitem(ENCODERS, "tiny", EncoderSpec("tiny", 32, 8, 64, 3, 2, 24, quick_gelu=True))
    quick = ImageEncoder.load(tmp_path / "a.safetensors").encode(picture()).pooled
    assert 1e-4 < float((quick - exact).abs().max()) < 1.0


@pytest.mark.parametrize("wrong", [Image.new("RGB", (31, 32)), Image.new("L", (32, 32))])
def test_another_size_or_mode_is_refused(tiny_file: Path, wrong: Image.Image) -> None:
    with pytest.raises(ImageError, match="32x32"):
        ImageEncoder.load(tiny_file).encode(wrong)


# files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_identical_features(layout: str, tiny_file: Path, tmp_path: Path) -> None:
    name, write = LAYOUTS[layout]
    write(tiny_weights(), tmp_path / name)
    assert identify_encoder(tmp_path / name) == TINY
    found, wanted = (ImageEncoder.load(p).encode(picture()) for p in (tmp_path / name, tiny_file))
    assert torch.equal(found.pooled, wanted.pooled)
    assert torch.equal(found.penultimate, wanted.penultimate)


def test_only_the_vision_tower_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text tower's tensors are never asked for."""
    from lib_ipadapter.encoders import clip

    save_file(as_open_clip(tiny_weights()), tmp_path / "a.safetensors")
    asked: list[str] = []

    def spying(keys: Any, read: Any, *rest: Any) -> Any:
        return original(keys, lambda key: (asked.append(key), read(key))[1], *rest)

    original = clip._weights
    monkeypatch.setattr(clip, "_weights", spying)
    ImageEncoder.load(tmp_path / "a.safetensors")
    assert sorted(asked) == sorted(f"visual.{key}" for key in tiny_weights())


def test_the_tower_is_built_without_initialisation(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    reset = torch.nn.Linear.reset_parameters
    monkeypatch.setattr(
        torch.nn.Linear,
        "reset_parameters",
        lambda self: (devices.append(self.weight.device.type), reset(self)),
    )
    state = torch.get_rng_state()
    ImageEncoder.load(tiny_file)
    assert set(devices) == {"meta"}
    assert torch.equal(torch.get_rng_state(), state), "the host's random numbers must not move"


@pytest.mark.parametrize("spec", spec_module._BUILT_IN, ids=lambda spec: spec.name)
def test_the_table_is_that_of_open_clip(spec: EncoderSpec) -> None:
    """Names, shapes and hidden widths against open_clip's own tower, on the meta device."""
    from open_clip import get_model_config

    from lib_ipadapter.encoders.clip import build_tower

    config = get_model_config(spec.name)
    vision = config["vision_cfg"]
    if spec.timm[0]:
        pytest.importorskip("timm", reason="timm is not installed")
        from lib_ipadapter.encoders.recognise import _differing
        from lib_ipadapter.encoders.timm_tower import timm_spec

        assert not _differing(timm_spec(spec.name, config), spec)
        return
    assert (spec.embed_dim, spec.image_size, spec.patch, spec.width, spec.layers) == (
        config["embed_dim"], vision["image_size"], vision["patch_size"], vision["width"], vision["layers"],
    )  # fmt: skip
    assert spec.heads == vision["width"] // vision.get("head_width", 64)
    state = {key: tuple(value.shape) for key, value in build_tower(spec).state_dict().items()}
    assert state == tower_shapes(spec)


def test_224_and_336_are_told_apart_and_by_no_name(tmp_path: Path) -> None:
    for name in ("ViT-L-14", "ViT-L-14-336"):
        spec = ENCODERS[name]
        # one row of zeros, expanded: real shapes without real size (a pickle keeps the strides)
        shapes = {k: torch.zeros(1).expand(shape) for k, shape in tower_shapes(spec).items()}
        torch.save(shapes, tmp_path / "faceid v2.bin")
        assert identify_encoder(tmp_path / "faceid v2.bin") == spec


def test_something_else_is_no_encoder(tmp_path: Path) -> None:
    save_file({"lora_unet.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    assert identify_encoder(tmp_path / "lora.safetensors") is None
    with pytest.raises(BrokenEncoder, match="no whole CLIP vision tower"):
        ImageEncoder.load(tmp_path / "lora.safetensors")


BROKEN: dict[str, tuple[Weights, str]] = {
    "missing": (without(tiny_weights(), "ln_post.bias"), r"missing ln_post\.bias"),
    "left over": ({**tiny_weights(), "extra.weight": torch.ones(1)}, r"left over extra\.weight"),
    "misshapen": (
        {**tiny_weights(), "ln_pre.weight": torch.ones(63)},
        r"misshapen ln_pre\.weight \[63\] instead of \[64\]",
    ),
    "missing, Hugging Face": (
        without(as_hugging_face(tiny_weights()), "vision_model.encoder.layers.1.self_attn.k_proj.weight"),
        r"missing transformer\.resblocks\.1\.attn\.in_proj_weight",
    ),
    "left over, Hugging Face": (
        {**as_hugging_face(tiny_weights()), "vision_model.stranger": torch.ones(1)},
        r"left over vision_model\.stranger",
    ),
    "no projection": (
        without(as_hugging_face(tiny_weights()), "visual_projection.weight"),
        "no whole CLIP vision tower",
    ),
    "another tower": (
        tiny_weights(spec=EncoderSpec("other", 32, 8, 48, 2, 2, 24)),
        "not known .*width 48, 2 layers",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_say_what_is_wrong(what: str, tmp_path: Path) -> None:
    weights, reason = BROKEN[what]
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(BrokenEncoder, match=reason):
        ImageEncoder.load(tmp_path / "a.safetensors")


class Code:
    """A pickle that would run code."""

    ran: ClassVar[list[bool]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Code.ran.append, (True,)


def test_a_pickle_with_code_is_refused_and_does_nothing(tmp_path: Path) -> None:
    for name, write in (("zip.bin", torch.save), ("old.bin", legacy)):
        write({**tiny_weights(), "payload": Code()}, tmp_path / name)
        with pytest.raises(UnsafeFile, match=name):
            ImageEncoder.load(tmp_path / name)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Code()))
    with pytest.raises(UnsafeFile, match=r"plain\.pth"):
        ImageEncoder.load(tmp_path / "plain.pth")
    assert Code.ran == []


def test_openais_script_archive_is_named_as_such(tmp_path: Path) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    torch.jit.save(torch.jit.script(Module()), str(tmp_path / "ViT-L-14.pt"))
    with pytest.raises(UnsafeFile, match="TorchScript"):
        ImageEncoder.load(tmp_path / "ViT-L-14.pt")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_unreadable_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tiny_weights(), path)
    _cut(path)
    with pytest.raises(UnsafeFile, match="cut off"):
        ImageEncoder.load(path)
    for content in (b"", b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(UnsafeFile, match=path.name):
            ImageEncoder.load(path)
    with pytest.raises(EncoderMissing, match="no such file"):
        ImageEncoder.load(tmp_path / f"gone{suffix}")


def test_a_foreign_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UnsafeFile, match=r"a\.bin: refused: a zip archive that torch did not write"):
        ImageEncoder.load(tmp_path / "a.bin")


# registry


def test_features_choose_their_encoder() -> None:
    names = {(f, w): for_feature(f, w) for f in ("pooled", "penultimate") for w in (768, 1024, 1280, 1664, 5)}
    found = {key: spec.name for key, spec in names.items() if spec}
    assert found == {
        ("pooled", 768): "ViT-L-14",
        ("pooled", 1024): "ViT-H-14",
        ("pooled", 1280): "ViT-bigG-14",
        ("penultimate", 1024): "ViT-L-14",
        ("penultimate", 1280): "ViT-H-14",
        ("penultimate", 1664): "ViT-bigG-14",
    }


def test_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_module, "ENCODERS", dict(ENCODERS))
    other = EncoderSpec("other", 64, 16, 48, 2, 4, 20)
    assert register(other) is other
    assert register(other) is other
    assert for_feature("pooled", 20) == other
    for clash in (
        EncoderSpec("other", 64, 16, 96, 2, 4, 20),
        EncoderSpec("same shapes", 64, 16, 48, 2, 2, 20),
    ):
        with pytest.raises(EncoderError, match="clashes with 'other'"):
            register(clash)
    for wrong in (EncoderSpec("", 64, 16, 48, 2, 4, 20), EncoderSpec("x", 60, 16, 48, 2, 4, 20)):
        with pytest.raises(EncoderError, match="must be a multiple"):
            register(wrong)
