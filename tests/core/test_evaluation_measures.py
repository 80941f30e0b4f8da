"""Measures by weight files, published values, and DreamBench++'s layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from lib_ipadapter.errors import BrokenEncoder, ConfigError, FileError
from lib_ipadapter.evaluation import Options, evaluate, read_items
from lib_ipadapter.evaluation.measures import PREPROCESS, load_measures
from lib_ipadapter.evaluation.published import TABLE
from lib_ipadapter.evaluation.run import Further
from lib_ipadapter.evaluation.vit import Vit
from tests.by_colour import THREE, ByColour, Mixer, plain
from tests.training_pictures import noise

CPU = torch.device("cpu")
SIZES = [(300, 200), (201, 333), (224, 224), (97, 51), (1000, 255)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pictures_are_prepared_as_published(size: tuple[int, int]):
    """dreambench_plus/metrics/dino_score.py for DINO, CSD/utils.py for CSD: torchvision's transforms; DINOv2 by Hugging
    Face's processor with facebook/dinov2-small's settings."""
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    picture = noise(1, size)
    for name, edge in (("dino", 256), ("csd", 224)):
        mean, std = PREPROCESS[name].mean, PREPROCESS[name].std
        bicubic = transforms.InterpolationMode.BICUBIC
        theirs = transforms.Compose([
            transforms.Resize(edge, interpolation=bicubic), transforms.CenterCrop(224), transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ])  # fmt: skip
        torch.testing.assert_close(PREPROCESS[name](picture)[0], theirs(picture), rtol=0, atol=1e-6)
    assert PREPROCESS["dino"].mean == (0.485, 0.456, 0.406)
    processor = pytest.importorskip("transformers", reason="transformers is not installed").BitImageProcessor(
        size={"shortest_edge": 256}, resample=3, crop_size={"height": 224, "width": 224}, do_convert_rgb=True,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    theirs = processor(picture, return_tensors="pt").pixel_values
    torch.testing.assert_close(PREPROCESS["dinov2"](picture), theirs, rtol=0, atol=1e-5)


def timm_vit(**fields: Any) -> Any:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(
        embed_dim=128, depth=2, num_heads=2, num_classes=0, **fields
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1) / 2, std=0.1)
    return model.eval()


@pytest.mark.parametrize("kind", ["dino", "dinov2"])
def test_the_towers_are_timms_on_the_same_random_weights(tmp_path: Path, kind: str):
    own = {"patch_size": 8} if kind == "dino" else {"patch_size": 14, "init_values": 1e-5}
    model = timm_vit(img_size=224, **own)
    path = tmp_path / "dino.pth"
    state = {**model.state_dict(), "mask_token": torch.zeros(1, 128), "head.weight": torch.zeros(3, 128)}
    torch.save({"teacher": {f"module.backbone.{key}": value for key, value in state.items()}}, path)
    picture = noise(2, (300, 200))
    pixels = PREPROCESS[kind](picture)
    with torch.no_grad():
        theirs = model.forward_features(pixels)[:, 0]
    vit = Vit.load(path, CPU)
    assert vit.second == (kind == "dinov2")
    torch.testing.assert_close(vit.features(pixels), theirs, rtol=1e-4, atol=1e-4)
    measure = load_measures([f"{kind}={path}"], CPU)[kind]
    torch.testing.assert_close(measure.embedding(picture), F.normalize(theirs[0].double(), dim=0), rtol=1e-4, atol=1e-5)
    other = {"dino": "dinov2", "dinov2": "dino"}[kind]
    with pytest.raises(BrokenEncoder, match=f"the weights of {kind}, expected those of {other}"):
        load_measures([f"{other}={path}"], CPU)


def test_positions_of_another_grid_are_scaled_as_the_authors_scale_them(tmp_path: Path):
    """facebookresearch/dinov2's interpolate_pos_encoding: scale factors (16 + 0.1) / 37."""
    model = timm_vit(img_size=518, patch_size=14, init_values=1e-5)
    torch.save(model.state_dict(), tmp_path / "v2.pth")
    vit = Vit.load(tmp_path / "v2.pth", CPU)
    grid = model.pos_embed[:, 1:].reshape(1, 37, 37, 128).permute(0, 3, 1, 2)
    scaled = F.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic", align_corners=False)
    assert scaled.shape[-2:] == (16, 16)
    wanted = torch.cat([model.pos_embed[:, :1], scaled.permute(0, 2, 3, 1).reshape(1, 256, 128)], 1)
    small = timm_vit(img_size=224, patch_size=14, init_values=1e-5)
    small.load_state_dict({**model.state_dict(), "pos_embed": wanted})
    pixels = PREPROCESS["dinov2"](noise(3))
    with torch.no_grad():
        torch.testing.assert_close(vit.features(pixels), small.forward_features(pixels)[:, 0], rtol=1e-4, atol=1e-4)


def test_hugging_faces_layout_is_read(tmp_path: Path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512, patch_size=16,
        image_size=224, layer_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.ViTModel(config).eval()
    save_file({f"vit.{key}": value for key, value in model.state_dict().items()}, str(tmp_path / "hf.safetensors"))
    pixels = PREPROCESS["dino"](noise(4))
    with torch.no_grad():
        theirs = model(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(
        Vit.load(tmp_path / "hf.safetensors", CPU).features(pixels), theirs, rtol=1e-4, atol=1e-4
    )


def test_hugging_faces_dinov2_is_the_authors_by_other_names(tmp_path: Path):
    model = timm_vit(img_size=224, patch_size=14, init_values=1e-5)
    found = {}
    for key, value in model.state_dict().items():
        key = key.replace("blocks.", "encoder.layer.").replace("attn.proj", "attention.output.dense")
        key = key.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        key = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
               "norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias"}.get(key, key)  # fmt: skip
        key = key.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        if ".attn.qkv." in key:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[key.replace("attn.qkv", f"attention.attention.{name}")] = part.contiguous()
        else:
            found[key] = value
    save_file(found, str(tmp_path / "hf.safetensors"))
    torch.save(model.state_dict(), tmp_path / "own.pth")
    pixels = PREPROCESS["dinov2"](noise(5))
    ours, theirs = (Vit.load(tmp_path / name, CPU).features(pixels) for name in ("hf.safetensors", "own.pth"))
    assert torch.equal(ours, theirs)


def test_csd_is_clips_tower_and_the_style_head(tmp_path: Path):
    from open_clip.transformer import QuickGELU, VisionTransformer

    torch.manual_seed(0)
    tower = VisionTransformer(224, 32, 128, 2, 2, 4.0, output_dim=48, act_layer=QuickGELU).eval()
    style, content = torch.randn(128, 48), torch.randn(128, 48)
    state = {f"module.backbone.{key}": value for key, value in tower.state_dict().items() if key != "proj"}
    state |= {"module.last_layer_style": style, "module.last_layer_content": content}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "csd.pth")
    picture = noise(6, (300, 200))
    measure = load_measures([f"csd={tmp_path / 'csd.pth'}"], CPU)["csd"]
    tower.proj = torch.nn.Parameter(torch.eye(128))
    with torch.no_grad():
        out = tower(PREPROCESS["csd"](picture))
        feature = out[0] if isinstance(out, tuple) else out
        wanted = F.normalize(feature @ style, dim=1)[0]
    torch.testing.assert_close(measure.embedding(picture), wanted.double(), rtol=1e-4, atol=1e-5)
    del state["module.last_layer_style"]
    torch.save({"model_state_dict": state}, tmp_path / "clip.pth")
    with pytest.raises(BrokenEncoder, match="no CSD"):
        load_measures([f"csd={tmp_path / 'clip.pth'}"], CPU)


@pytest.mark.parametrize("text", ["dino", "dino=", "lpips=a.pth", "=a.pth"])
def test_a_measure_is_a_name_and_a_file(text: str):
    with pytest.raises(ConfigError, match="expected NAME=FILE, each name once, of dino, dinov2, csd"):
        load_measures([text], CPU)


def test_what_is_no_dino_is_said(tmp_path: Path):
    model = timm_vit(img_size=224, patch_size=16, reg_tokens=4)
    torch.save(model.state_dict(), tmp_path / "registers.pth")
    with pytest.raises(BrokenEncoder, match=r"registers\.pth: no DINO .*Unexpected key.*reg_token"):
        Vit.load(tmp_path / "registers.pth", CPU)


def test_the_table_has_them_with_intervals_and_the_report_what_is_published(tmp_path: Path):
    model = timm_vit(img_size=224, patch_size=32)
    torch.save(model.state_dict(), tmp_path / "dino.pth")
    measures = load_measures([f"dino={tmp_path / 'dino.pth'}"], CPU)
    told = {name: measure.settings() for name, measure in measures.items()}
    further = Further(measures, told, published=True)
    results = evaluate(
        THREE, [Mixer("mix")], ByColour(), tmp_path / "out", Options(weights=(0.5, 1.0)), further=further
    )
    whole, half = results.row("mix", 1.0).measures["dino"], results.row("mix", 0.5).measures["dino"]
    assert whole.mean == pytest.approx(1.0, abs=1e-6)
    assert half.mean < 0.9999
    assert half.n == 3
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| DINO |" in text.splitlines()[0]
    assert "| published, not measured here |" in text
    assert "| IP-Adapter | 22 M | 0.828 | 0.588 |" in text
    held = json.loads((tmp_path / "out" / "results.json").read_text())
    assert held["settings"]["measures"]["dino"]["sha256"]
    assert "published" not in json.dumps(held["rows"]), "what is published is no row of what was measured"
    assert len(TABLE) == 9
    plainly = evaluate(THREE, [Mixer("mix")], ByColour(), tmp_path / "plain", Options())
    assert "published" not in plainly.markdown()


# DreamBench++


def dreambench(root: Path) -> Path:
    for category, subject in (("live_subject/animal", "Kitten"), ("object", "Red Toy")):
        for part in ("images", "captions"):
            (root / part / category).mkdir(parents=True)
        plain("red").save(root / "images" / category / "00.jpg")
        (root / "captions" / category / "00.txt").write_text(f"{subject}\na {subject}\na {subject} in the snow\n")
    return root


def test_its_folder_is_read_and_its_layout_written(tmp_path: Path):
    """As its README shows it: the three folders hold the same names, so that its scripts pair them."""
    items = read_items(dreambench(tmp_path / "data"))
    assert [(item.key, item.caption) for item in items] == [
        ("live_subject_animal_00_kitten-0", "a Kitten"), ("live_subject_animal_00_kitten-1", "a Kitten in the snow"),
        ("object_00_red_toy-0", "a Red Toy"), ("object_00_red_toy-1", "a Red Toy in the snow"),
    ]  # fmt: skip
    assert len(read_items(tmp_path / "data", limit=1)) == 2
    out = tmp_path / "out"
    evaluate(items, [Mixer("mix")], ByColour(), out, Options(count=2, weights=(1.0,)), further=Further(negative="blur"))
    root = out / "dreambench" / "mix-1"
    names = {kind: sorted(p.relative_to(root / kind).with_suffix("").as_posix() for p in (root / kind).rglob("*.*"))
             for kind in ("src_image", "text", "tgt_image")}  # fmt: skip
    assert names["src_image"] == names["text"] == names["tgt_image"]
    assert names["text"][:4] == [f"live_subject_animal_00_kitten/{i}_{j}" for i in (0, 1) for j in (0, 1)]
    assert (root / "text" / "object_00_red_toy" / "1_0.txt").read_text() == "a Red Toy in the snow"
    assert (root / "negative_prompt.txt").read_text() == "blur"
    with Image.open(root / "tgt_image" / "object_00_red_toy" / "1_1.jpg") as picture:
        drawn = np.asarray(picture.convert("RGB")).mean((0, 1))
    assert np.abs(drawn - (220, 20, 30)).max() < 4


def test_references_of_ones_own_are_written_too(tmp_path: Path):
    evaluate(THREE, [Mixer("mix")], ByColour(), tmp_path, Options(), further=Further(negative=""))
    assert (tmp_path / "dreambench" / "mix-1" / "tgt_image" / "red" / "0_0.jpg").is_file()


def test_a_file_without_prompts_is_said(tmp_path: Path):
    root = dreambench(tmp_path)
    (root / "captions" / "object" / "00.txt").write_text("Red Toy\n")
    with pytest.raises(FileError, match="a prompt in each of the next"):
        read_items(root)
