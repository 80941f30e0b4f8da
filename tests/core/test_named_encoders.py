"""Encoders by their published name: SigLIP, EVA02, DINOv2, ConvNeXt, small and with random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lib_ipadapter.adapters.variant import identify
from lib_ipadapter.encoders import Catalog, EncoderSource, ImageEncoder, Need, weight_file
from lib_ipadapter.encoders.named import named_spec
from lib_ipadapter.encoders.recognise import forget, recognise
from lib_ipadapter.encoders.timm_tower import blocks_of
from lib_ipadapter.errors import BrokenEncoder, EncoderMissing
from tests.synthetic import adapter_tensors
from tests.tiny_tower import tiny_weights

timm = pytest.importorskip("timm", reason="timm is not installed")

SMALL = {"depth": 3, "embed_dim": 64, "num_heads": 2}
SMALL_MAPS = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# name: side, tokens, mean and std, as the publishers have them
TIMM = {
    "vit_small_patch14_dinov2.lvd142m": (518, 37 * 37 + 1, IMAGENET),
    "vit_small_patch14_reg4_dinov2": (518, 37 * 37 + 5, IMAGENET),
    "vit_base_patch16_siglip_224.webli": (224, 196, HALF),
    "vit_base_patch16_siglip_256.v2_webli": (256, 256, HALF),
    "eva02_tiny_patch14_224.mim_in22k": (224, 257, CLIP),
    "eva02_base_patch16_clip_224.merged2b": (224, 197, CLIP),
    "vit_tiny_r_s16_p8_224.augreg_in21k": (224, 50, HALF),  # patches are of a ResNet's map
    "convnext_atto.d2_in1k": (224, 49, IMAGENET),
    "convnextv2_atto.fcmae": (224, 49, IMAGENET),
}


@pytest.fixture(autouse=True)
def small_towers(monkeypatch: pytest.MonkeyPatch):
    """timm's classes, small."""
    real = timm.create_model

    def create(name: str, **options: Any) -> Any:
        return real(name, **{**options, **(SMALL_MAPS if "convnext" in name else SMALL)})

    monkeypatch.setattr(timm, "create_model", create)
    named_spec.cache_clear()
    forget()
    yield
    named_spec.cache_clear()
    forget()


def known(name: str) -> str:
    """The name, where the installed timm knows it."""
    try:
        named_spec(name)
    except BrokenEncoder as error:
        pytest.skip(str(error))
    return name


def published(folder: Path, name: str) -> tuple[Path, Any]:
    """A file as timm publishes it, with a classifier that nobody needs; and the tower, without it."""
    arch = name.partition(".")[0]
    torch.manual_seed(1)
    clip = "_clip_" in name
    trunk = timm.create_model(arch, num_classes=512 if clip else 0).eval()
    state = {key: torch.randn_like(value) * 0.1 for key, value in trunk.state_dict().items()}
    trunk.load_state_dict(state)
    beside = {} if clip else {"head.fc.weight" if "convnext" in name else "head.weight": torch.ones(10, 64)}
    path = folder / f"{name}.safetensors"
    save_file({**state, **beside}, path)
    return path, trunk


@pytest.mark.parametrize("name", TIMM)
def test_a_name_is_the_tower_with_its_own_pixels(tmp_path: Path, name: str):
    side, tokens, (mean, std) = TIMM[known(name)]
    path, trunk = published(tmp_path, name)
    encoder = ImageEncoder.load(path)
    spec = encoder.spec
    assert (spec.name, spec.image_size, spec.tokens, spec.mean, spec.std) == (name, side, tokens, mean, std)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    values = (values - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    held: list[torch.Tensor] = []
    blocks_of(trunk)[-1].register_forward_pre_hook(lambda _, args: held.append(args[0]))
    with torch.no_grad():
        pooled = trunk(values)
    before = held[0] if held[0].ndim == 3 else held[0].permute(0, 2, 3, 1).reshape(1, tokens, -1)
    features = encoder.encode(Image.fromarray(pixels))
    torch.testing.assert_close(features.pooled, pooled)
    torch.testing.assert_close(features.penultimate, before)
    assert features.pooled.shape == (1, spec.embed_dim)
    assert features.penultimate.shape == (1, spec.tokens, spec.width)


OPEN_CLIP = {
    "convnext_base_w": ("convnext_base", "linear", 256, CLIP),
    "convnext_large_d_320": ("convnext_large", "mlp", 320, CLIP),
    "ViT-SO400M-14-SigLIP-384": ("vit_so400m_patch14_siglip_384", "none", 384, HALF),
    "ViT-B-16-SigLIP2-256": ("vit_base_patch16_siglip_256", "none", 256, HALF),
    "EVA02-B-16": ("eva02_base_patch16_clip_224", "", 224, CLIP),
}


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clips_names_are_its_towers(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    """Weights as open_clip's own class has them, a text tower beside."""
    open_clip = pytest.importorskip("open_clip")
    model, projection, side, (mean, std) = OPEN_CLIP[known(name)]
    spec = named_spec(name)
    assert (spec.image_size, spec.timm[0], spec.timm[2]) == (side, model, projection)
    np.testing.assert_allclose((spec.mean, spec.std), (mean, std))
    config = open_clip.get_model_config(name)["vision_cfg"]
    embed = 64 if projection == "none" else open_clip.get_model_config(name)["embed_dim"]
    torch.manual_seed(0)
    theirs = open_clip.timm_model.TimmModel(
        model, embed, side, pool=config["timm_pool"], proj=None if projection in ("", "none") else projection
    ) if projection != "none" else _without_projection(open_clip, model, side, config["timm_pool"])  # fmt: skip
    theirs = theirs.eval()
    beside = {"text.cls_emb": torch.ones(2), "logit_scale": torch.ones(())}
    save_file(
        {**{f"visual.{k}": v for k, v in theirs.state_dict().items()}, **beside}, tmp_path / f"{name}.safetensors"
    )
    encoder = ImageEncoder.load(tmp_path / f"{name}.safetensors")
    pixels = torch.randn(1, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_pixels(pixels, "pooled"), theirs(pixels))


def _without_projection(open_clip: Any, model: str, side: int, pool: str) -> torch.nn.Module:
    """open_clip 2.20 has no projection "none": an empty head."""
    tower = torch.nn.Module()
    tower.trunk = timm.create_model(model, num_classes=0, global_pool=pool, img_size=side)
    tower.forward = tower.trunk.forward
    return tower


def test_an_adapter_finds_its_encoder_by_the_name_in_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = "vit_small_patch14_dinov2.lvd142m"
    published(tmp_path, name)
    published(tmp_path, "convnext_atto.d2_in1k")
    shapes = {key: tuple(value.shape) for key, value in adapter_tensors("plus", feature_width=64).items()}
    need = identify(shapes, "a", name).needs[0]
    source = EncoderSource(Catalog([tmp_path]))
    assert source.spec(need).name == name
    assert source.side(need) == 518
    assert source.encode(Image.new("RGB", (518, 518)), need).shape == (1, 37 * 37 + 1, 64)
    # The same name as `encoder` of a training and as --encoder.
    models = tmp_path / "webui" / "models" / "clip_vision"
    models.mkdir(parents=True)
    own = published(models, name)[0]
    monkeypatch.chdir(tmp_path / "webui")
    assert weight_file(name).samefile(own)
    assert weight_file(own) == own
    with pytest.raises(EncoderMissing, match=r"timm/vit_base_patch14_dinov2\.lvd142m.*clip_vision"):
        weight_file("vit_base_patch14_dinov2.lvd142m")


def test_what_is_wrong_is_said(tmp_path: Path):
    save_file({"x": torch.ones(1)}, tmp_path / "vit_of_tomorrow.safetensors")
    with pytest.raises(BrokenEncoder, match=rf"no tower vit_of_tomorrow is known to timm {timm.__version__}.*pip inst"):
        ImageEncoder.load(tmp_path / "vit_of_tomorrow.safetensors")
    name = "convnext_atto.d2_in1k"
    save_file({"stem.0.weight": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    assert recognise(tmp_path / f"{name}.safetensors").spec is not None
    with pytest.raises(BrokenEncoder, match=r"not a whole convnext_atto.*that timm publishes"):
        ImageEncoder.load(tmp_path / f"{name}.safetensors")
    missing = "vit_small_patch14_dinov2.lvd142m"
    with pytest.raises(EncoderMissing, match=rf"trained with the image encoder {missing}.*{missing}\.safetensors"):
        EncoderSource(Catalog([tmp_path])).check(Need("pooled", 7, missing))
    assert not named_spec(name).gives("levels")


def test_a_host_without_open_clip_still_lists_its_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    name = "ViT-B-16-SigLIP"
    save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    (found,) = Catalog([tmp_path]).all()
    assert found.spec is None
    assert name in found.problem
    with pytest.raises(BrokenEncoder, match=rf"no tower {name} is known.*{name}\.json"):
        ImageEncoder.load(tmp_path / f"{name}.safetensors")


def test_a_tower_without_what_is_read_off_hides_no_other(tmp_path: Path):
    """Its blocks have several MLPs side by side."""
    for name in ("vit_small_patch16_18x2_224", "naflexvit_base_patch16_gap", "convnext_atto.d2_in1k"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    found = {entry.path.stem: entry for entry in Catalog([tmp_path]).all()}
    assert found["convnext_atto.d2_in1k"].spec is not None
    for name in ("vit_small_patch16_18x2_224", "naflexvit_base_patch16_gap"):
        assert found[name].spec is None
        assert name in found[name].problem


def test_nothing_of_a_towers_size_is_built_before_its_file_is_known_to_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """timm before 1.0 reads numbers off ``linspace``, which has none on meta."""
    made: list[str] = []
    small = timm.create_model

    def create(name: str, **options: Any) -> Any:
        assert [x.item() for x in torch.linspace(0, 1, 2)] == [0, 1]
        tower = small(name, **options)
        made.append(next(tower.parameters()).device.type)
        return tower

    monkeypatch.setattr(timm, "create_model", create)
    name = "convnext_atto.d2_in1k"
    save_file({"stem.0.weight": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(BrokenEncoder, match="not a whole convnext_atto"):
        ImageEncoder.load(tmp_path / f"{name}.safetensors")
    assert set(made) == {"meta"}


def test_what_is_wrong_with_a_clip_is_not_hidden_by_its_files_name(tmp_path: Path):
    weights = {f"visual.{key}": value for key, value in tiny_weights().items()}
    path = tmp_path / "vit_base_patch16_clip_224.openai.safetensors"
    save_file(weights, path)
    with pytest.raises(BrokenEncoder, match="a CLIP vision tower that is not known"):
        ImageEncoder.load(path)
    assert "not known" in recognise(path).problem
