"""Encoders in folders: added, edited, broken or foreign ones, and two of one shape (A4 to A6, A9, A10, A25)."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lib_ipadapter.encoders import (
    Catalog,
    EncoderPool,
    EncoderSource,
    ImageEncoder,
    Need,
    clip,
    find_encoder,
    listing,
    recognise,
)
from lib_ipadapter.encoders.precision import without_autocast
from lib_ipadapter.encoders.state import assign
from lib_ipadapter.errors import BrokenEncoder, EncoderMissing
from tests.tiny_tower import TINY, as_hugging_face, picture, tiny_weights

pytestmark = pytest.mark.usefixtures("tiny_registered")
VISION = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 32}


def write(path: Path, seed: int = 0, **fields: Any) -> Path:
    """Weights of the tiny tower; with fields, a config of their name beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tiny_weights(seed), path)
    config(path, **fields)
    return path


def config(path: Path, **fields: Any) -> None:
    if fields:
        text = json.dumps({"embed_dim": 24, "vision_cfg": VISION, **fields})
        path.with_suffix(".json").write_text(text)


MEAN = {"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}


def test_an_encoder_that_is_added_is_found_at_the_next_use(tmp_path: Path) -> None:
    """A4: an adapter of a width that nobody gives, and then its encoder."""
    catalog, need = Catalog([tmp_path]), Need("pooled", 25)
    with pytest.raises(EncoderMissing, match="no known image encoder gives"):
        catalog.name_of(need)
    wide = {**tiny_weights(), "proj": torch.randn(64, 25)}
    save_file(wide, tmp_path / "mine.safetensors")
    (tmp_path / "mine.json").write_text(json.dumps({"embed_dim": 25, "vision_cfg": VISION}))
    assert catalog.name_of(need) == "mine"
    whole = (tmp_path / "mine.safetensors").read_bytes()
    (tmp_path / "mine.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncoderMissing, match=r"One is there and cannot be used: mine\.safetensors: .*cut off"):
        catalog.name_of(need)
    (tmp_path / "mine.safetensors").write_bytes(whole)
    assert catalog.find("mine").path == tmp_path / "mine.safetensors"
    (tmp_path / "mine.safetensors").rename(tmp_path / "renamed.safetensors")
    (tmp_path / "mine.json").rename(tmp_path / "renamed.json")
    assert catalog.name_of(need) == "renamed"


@pytest.mark.parametrize("foreign", [
    '{"embed_dim": 1024, "vision_cfg": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": null}}',
    '{"vision_cfg": 3}', '{"vision_cfg": {"timm_model_name": "none_such", "image_size": 32}, "embed_dim": 8}', "{",
    '{"vision_cfg": {}}',
    '{"embed_dim": 24, "vision_cfg": {"image_size": 33, "layers": 3, "width": 64, "patch_size": 8}}',
])  # fmt: skip
def test_a_foreign_config_hurts_only_its_encoder(tmp_path: Path, foreign: str) -> None:
    """A5: RN50.json beside RN50.pt."""
    write(tmp_path / "RN50.safetensors")
    (tmp_path / "RN50.json").write_text(foreign)
    write(tmp_path / "z.safetensors")
    catalog = Catalog([tmp_path])
    assert catalog.find("tiny").path.name == "z.safetensors"
    assert catalog.name_of(Need("pooled", 24)) == "tiny"
    with pytest.raises(BrokenEncoder, match=r"RN50\.json"):
        catalog.find("RN50")


def test_custom_encoders_in_folders_below_and_behind_links(tmp_path: Path) -> None:
    """A6a."""
    write(tmp_path / "elsewhere" / "mine.safetensors", **MEAN)
    (tmp_path / "clip_vision").mkdir()
    (tmp_path / "clip_vision" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert Catalog([tmp_path / "clip_vision"]).find("mine").spec.mean == (0.5, 0.5, 0.5)  # type: ignore[union-attr]


def test_an_edited_config_is_seen_at_the_next_use(tmp_path: Path) -> None:
    """A6b: without restart; the features are those of the new mean, and none of the old are used."""
    path, pool = write(tmp_path / "mine.safetensors", **MEAN), EncoderPool()
    need = Need("pooled", 24, "mine")

    def source() -> EncoderSource:
        return EncoderSource(Catalog([tmp_path]), pool)

    first, identity = source().encode(picture(), need), source().identity(need)
    config(path, preprocess_cfg={"mean": [0.25] * 3, "std": [0.5] * 3})
    os.utime(path.with_suffix(".json"), ns=(5, 5))
    assert source().identity(need) != identity
    assert not torch.allclose(source().encode(picture(), need), first)


def test_two_towers_of_one_shape_are_told_apart(tmp_path: Path) -> None:
    """A6c: a file with a config of its name is no other encoder, and the other way round."""
    write(tmp_path / "a.safetensors", 1, **MEAN)
    write(tmp_path / "b.safetensors", 2, quick_gelu=True)
    catalog = Catalog([tmp_path])
    with pytest.raises(EncoderMissing, match=r"a\.safetensors"):
        catalog.find("tiny")
    plain = write(tmp_path / "c.safetensors", 3)
    assert catalog.find("tiny").path == plain
    found = {name: catalog.find(name).spec for name in ("a", "b", "tiny")}
    assert found["a"].mean == (0.5, 0.5, 0.5)  # type: ignore[union-attr]
    assert found["b"].quick_gelu  # type: ignore[union-attr]
    assert found["tiny"] == TINY
    assert ImageEncoder.load(tmp_path / "b.safetensors").spec == found["b"]
    with pytest.raises(EncoderMissing, match="a, b give such features"):
        catalog.name_of(Need("pooled", 24))
    assert catalog.name_of(Need("pooled", 24, "b")) == "b"


def test_a_config_of_a_known_name_must_agree_with_it(tmp_path: Path) -> None:
    write(tmp_path / "tiny.safetensors", **MEAN)
    with pytest.raises(BrokenEncoder, match=r"tiny\.json.*another tower.*mean"):
        Catalog([tmp_path]).find("tiny")
    config(tmp_path / "tiny.safetensors", quick_gelu=False)
    assert Catalog([tmp_path]).find("tiny").spec == TINY


def test_a_downloads_config_tells_activation_and_mean(tmp_path: Path) -> None:
    """LAION's ViT-L-14 has the shapes of OpenAI's, and another activation and mean."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "patch_size": 8}
    folder = tmp_path / "hugging face"
    folder.mkdir()
    save_file(as_hugging_face(tiny_weights()), folder / "model.safetensors")
    catalog = Catalog([tmp_path])
    assert "activation (GELU), mean and std is assumed" in catalog.find("tiny").note
    (folder / "config.json").write_text(json.dumps({"vision_config": {**sizes, "hidden_act": "gelu"}}))
    assert catalog.find("tiny").note == ""
    (folder / "config.json").write_text(json.dumps({**sizes, "hidden_act": "quick_gelu"}))
    with pytest.raises(EncoderMissing, match=r"activation QuickGELU by its config\.json"):
        catalog.find("tiny")
    with pytest.raises(BrokenEncoder, match=r"another encoder.*model\.json"):
        ImageEncoder.load(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**sizes, "hidden_act": "gelu"}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3}))
    with pytest.raises(EncoderMissing, match="mean"):
        catalog.find("tiny")
    (folder / "config.json").write_text(json.dumps({**sizes, "hidden_size": 65}))  # of another file
    assert catalog.find("tiny").path.parent == folder
    other = tmp_path / "open_clip"
    write(other / "open_clip_model.safetensors")
    hub = {"model_cfg": {"quick_gelu": True, "vision_cfg": {"width": 64, "layers": 3}}}
    (other / "open_clip_config.json").write_text(json.dumps(hub))
    with pytest.raises(BrokenEncoder, match="QuickGELU"):
        ImageEncoder.load(other / "open_clip_model.safetensors")


def test_folders_are_listed_once_and_pictures_are_left_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A10."""
    write(tmp_path / "a.safetensors", **MEAN)
    write(tmp_path / "references" / "x" / "b.safetensors")
    write(tmp_path / "embeds" / "c.safetensors")
    for folder in (tmp_path, tmp_path / "references", tmp_path / "embeds"):
        os.utime(folder, ns=(10**18, 10**18))  # not changed a moment ago
    walked: list[str] = []
    walk = os.walk
    monkeypatch.setattr(listing.os, "walk", lambda *a, **k: (walked.append(str(a[0])), walk(*a, **k))[1])
    opened: list[Path] = []
    original = recognise.opened
    monkeypatch.setattr(recognise, "opened", lambda path: (opened.append(path), original(path))[1])
    catalog = Catalog([tmp_path])
    for _ in range(5):
        assert catalog.find("a").path.name == "a.safetensors"
        assert catalog.name_of(Need("pooled", 24, "a")) == "a"
    assert len(walked) == 1
    assert [path.name for path in opened] == ["a.safetensors"]
    with pytest.raises(EncoderMissing) as failure:
        catalog.find("tiny")
    assert "b.safetensors" not in str(failure.value)
    catalog.refresh()
    catalog.find("a")
    assert len(walked) == 2
    write(tmp_path / "new.safetensors")
    assert catalog.find("tiny").path.name == "new.safetensors", "seen without a refresh"


@pytest.fixture
def overflows(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The tower overflows in half precision. What dtypes ran."""
    ran: list[torch.dtype] = []
    original = clip._run

    def run(block: Any, hidden: torch.Tensor) -> torch.Tensor:
        out = original(block, hidden)
        ran.append(out.dtype)
        return out if out.dtype == torch.float32 else out * torch.inf

    monkeypatch.setattr(clip, "_run", run)
    return ran


@pytest.mark.parametrize("feature", ["pooled", "penultimate"])
def test_features_that_are_not_finite_are_computed_in_float32(
    tiny_file: Path, overflows: list[torch.dtype], feature: Any
) -> None:
    """A9."""
    need = Need(feature, 24 if feature == "pooled" else 64, "tiny")
    found = EncoderSource([tiny_file], dtype=torch.bfloat16).encode(picture(), need)
    assert set(overflows) == {torch.bfloat16, torch.float32}
    assert torch.equal(found, ImageEncoder.load(tiny_file).encode(picture(), feature).of(feature))


def test_what_is_not_finite_in_float32_is_the_encoders_fault(tmp_path: Path) -> None:
    broken = tiny_weights()
    broken["ln_post.weight"][3] = torch.nan
    broken["transformer.resblocks.0.ln_1.weight"][3] = torch.nan
    save_file(broken, tmp_path / "a.safetensors")
    source = EncoderSource([tmp_path], dtype=torch.bfloat16)
    for need in (Need("pooled", 24, "tiny"), Need("penultimate", 64, "tiny")):
        with pytest.raises(BrokenEncoder, match=r"a\.safetensors: the image encoder tiny gives NaN.*float32"):
            source.encode(picture(), need)
    with pytest.raises(BrokenEncoder, match="NaN"):
        source.unconditional(need)


@pytest.mark.parametrize(("keep", "short", "moved", "stays"), [
    ("device", False, False, True), ("memory", False, True, True), ("nothing", False, False, False),
    ("device", True, True, True),
])  # fmt: skip
def test_where_the_encoder_is_after_encoding(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch, keep: Any, short: bool, moved: bool, stays: bool
) -> None:
    """A25: it leaves the device before sampling, unless it is wanted there; room is made only if it encodes."""
    pool, entered, offloaded = EncoderPool(), [], []
    monkeypatch.setattr(EncoderPool, "offload", lambda self: offloaded.append(True))

    @contextlib.contextmanager
    def room() -> Any:
        entered.append(True)
        yield short

    with pool.room(room, "device"):
        pass
    assert entered == []
    offloaded.clear()
    with pool.room(room, keep):
        for _ in range(2):
            with pool.room(room, "device"):
                pool.encode(tiny_file, picture(), "pooled")
        assert offloaded == []
    assert entered == [True]
    assert bool(offloaded) == moved
    assert (pool.loaded is not None) == stays


def test_what_takes_time_is_said_until_it_is_over(tiny_file: Path) -> None:
    """F19. A known encoder is not loaded again, and a job that encodes nothing says nothing."""
    said: list[str] = []
    pool = EncoderPool(said.append)
    with pool.room(lambda: contextlib.nullcontext(False), "memory"):
        assert said == []
        pool.encode(tiny_file, picture(), "pooled")
    assert said == [f"loading the image encoder {tiny_file.name}", "encoding the reference images", ""]
    with pool.room(lambda: contextlib.nullcontext(False), "memory"):
        pool.encode(tiny_file, picture(), "pooled")
    assert said[3:] == ["encoding the reference images", ""]
    with pool.room(lambda: contextlib.nullcontext(False), "memory"):
        pass
    assert len(said) == 5


def test_weights_without_assign(monkeypatch: pytest.MonkeyPatch, tiny_file: Path) -> None:
    """torch 2.0: load_state_dict has no such argument."""
    wanted = ImageEncoder.load(tiny_file).encode(picture()).pooled

    def load(self: nn.Module, state: Any, strict: bool = True) -> Any:
        raise AssertionError("copied")

    monkeypatch.setattr(nn.Module, "load_state_dict", load)
    assert torch.equal(ImageEncoder.load(tiny_file).encode(picture()).pooled, wanted)
    with pytest.raises(RuntimeError, match="expected the keys"):
        assign(nn.Linear(2, 2), {"weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "meta", "privateuseone"])
def test_autocast_is_off_on_every_device_that_has_it(device: str) -> None:
    with without_autocast(torch.device(device)):
        pass
    with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_find_encoder_is_the_catalogs(tmp_path: Path) -> None:
    assert find_encoder("tiny", [write(tmp_path / "a.safetensors")]) == tmp_path / "a.safetensors"
