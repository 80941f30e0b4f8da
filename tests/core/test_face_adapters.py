"""Face adapters: which file is which kind, with every key accounted for, and what each kind makes of a face."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch.nn import functional as F

from lib_ipadapter.adapters import file as adapter_file
from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.adapters.file import open_adapter
from lib_ipadapter.adapters.inspect import report
from lib_ipadapter.adapters.variant import identify
from lib_ipadapter.cli import main
from lib_ipadapter.encoders.spec import Need
from lib_ipadapter.errors import BrokenAdapter, UnitError
from tests.synthetic import SD1_WIDTHS, SDXL_WIDTHS, STYLES, adapter_tensors, write_adapter

SMALL = {"context": 64, "widths": (32, 64, 32)}
UNNORM = {"context": 2048, "widths": (32,), "dim": 64, "tokens": 16}


def published(variant: str, context: int, widths: tuple[int, ...], tokens: int, lora: int = 0) -> dict:
    """Shapes of a published file, without its 100 MB to 2 GB."""
    with torch.device("meta"):
        flat = adapter_tensors(
            variant, context, widths, 1280, tokens, dim=1280, inner=1280 if variant == "unnorm" else context,
            depth=4, lora=lora,
        )  # fmt: skip
    return {key: tuple(value.shape) for key, value in flat.items()}


# name, shapes, (variant, base, recogniser, what else it takes, rank of the LoRA)
CLIP = (Need("penultimate", 1280, "ViT-H-14", "face"),)
SD1, XL = (768, SD1_WIDTHS), (2048, SDXL_WIDTHS)
PUBLISHED = {
    "ip-adapter-faceid_sd15": (("faceid", *SD1, 4, 128), "faceid", "SD1.5", "buffalo_l", (), 128),
    "ip-adapter-faceid_sdxl": (("faceid", *XL, 4, 128), "faceid", "SDXL", "buffalo_l", (), 128),
    "ip-adapter-faceid-portrait_sd15": (("faceid", *SD1, 16), "portrait", "SD1.5", "buffalo_l", (), 0),
    "ip-adapter-faceid-portrait-v11_sd15": (("faceid", *SD1, 16), "portrait", "SD1.5", "buffalo_l", (), 0),
    "ip-adapter-faceid-portrait_sdxl": (("faceid", *XL, 16), "portrait", "SDXL", "buffalo_l", (), 0),
    "ip-adapter-faceid-portrait_sdxl_unnorm": (("unnorm", *XL, 16), "unnorm", "SDXL", "buffalo_l", (), 0),
    "ip-adapter_instant_id_sdxl": (("unnorm", *XL, 16), "instantid", "SDXL", "antelopev2", (), 0),
    "ip-adapter-faceid-plus_sd15": (("faceid-plus", *SD1, 4, 128), "faceid-plus", "SD1.5", "buffalo_l", CLIP, 128),
    "ip-adapter-faceid-plusv2_sd15": (("faceid-plus", *SD1, 4, 128), "faceid-plusv2", "SD1.5", "buffalo_l", CLIP, 128),
    "ip-adapter-faceid-plusv2_sdxl": (("faceid-plus", *XL, 4, 128), "faceid-plusv2", "SDXL", "buffalo_l", CLIP, 128),
    "plus of SDXL, renamed": (("faceid-plus", *XL, 4, 128), "faceid-plusv2", "SDXL", "buffalo_l", CLIP, 128),
    "a_face_v1": (("faceid-plus", *SD1, 4, 128), "faceid-plusv2", "SD1.5", "buffalo_l", CLIP, 128),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_are_known_for_what_they_are(name):
    args, variant, base, recogniser, also, rank = PUBLISHED[name]
    spec = identify(published(*args), f"{name}.bin")
    feature = "raw face" if args[0] == "unnorm" else "face"
    assert spec.variant == variant
    assert (spec.base, spec.encoder, spec.also, spec.lora_rank) == (base, recogniser, also, rank)
    assert spec.needs == (Need(feature, 512, recogniser, "face"), *also)
    assert spec.tokens == args[3]


def test_a_face_id_file_has_288_or_1260_keys_of_attention():
    for args, count in (("ip-adapter-faceid_sd15", 288), ("ip-adapter-faceid_sdxl", 1260)):
        shapes = published(*PUBLISHED[args][0])
        assert sum(key.startswith("ip_adapter.") for key in shapes) == count


KEYS = ["ip_adapter.0.to_q_lora.down.weight", "ip_adapter.5.to_v_lora.up.weight", "ip_adapter.2.to_out_lora.up.weight"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("variant", ["faceid", "faceid-plus"])
def test_every_key_of_the_lora_is_accounted_for(variant, key):
    shapes = {k: tuple(v.shape) for k, v in adapter_tensors(variant, **SMALL, lora=4).items()}
    del shapes[key]
    with pytest.raises(BrokenAdapter, match=rf"missing: {key}"):
        identify(shapes, "a")
    with pytest.raises(BrokenAdapter, match=rf"{key} is \[4, 5\]"):
        identify({**shapes, key: (4, 5)}, "a")
    with pytest.raises(BrokenAdapter, match=r"left over: ip_adapter\.6\.to_q_lora\.up\.weight"):
        identify({**shapes, key: (4, 5), "ip_adapter.6.to_q_lora.up.weight": (32, 4)}, "a")


@pytest.mark.parametrize("key", ["image_proj.norm.bias", "image_proj.perceiver_resampler.layers.1.1.3.weight"])
def test_a_broken_face_projection_lists_its_keys(key):
    shapes = {k: tuple(v.shape) for k, v in adapter_tensors("faceid-plus", **SMALL).items()}
    with pytest.raises(BrokenAdapter, match=f"missing: {key}"):
        identify({k: v for k, v in shapes.items() if k != key}, "a")


def test_embeddings_of_another_width_are_no_face():
    shapes = {k: tuple(v.shape) for k, v in adapter_tensors("faceid", **SMALL).items()}
    with pytest.raises(BrokenAdapter, match="no known image projection"):
        identify({**shapes, "image_proj.proj.0.weight": (1024, 500)}, "a")


# two kinds of the same shapes


def path_of(tmp_path, variant: str = "faceid-plus", name: str = "face"):
    size = UNNORM if variant == "unnorm" else SMALL
    return write_adapter(tmp_path / f"{name}.safetensors", adapter_tensors(variant, **size))


@pytest.mark.parametrize(
    ("variant", "name", "kind"),
    [
        ("faceid-plus", "face", "faceid-plusv2"),
        ("faceid-plus", "My-FaceID-Plus", "faceid-plus"),
        ("faceid-plus", "My-FaceID-PlusV2", "faceid-plusv2"),
        ("unnorm", "face", "instantid"),
        ("unnorm", "my-portrait", "unnorm"),
    ],
)
def test_the_name_tells_where_nothing_else_does(tmp_path, variant, name, kind):
    assert Adapter.load(path_of(tmp_path, variant, name)).spec.variant == kind


@pytest.mark.parametrize("variant", ["faceid-plus", "unnorm"])
def test_the_hash_of_a_published_file_comes_before_its_name(tmp_path, variant, monkeypatch):
    path = write_adapter(tmp_path / "portrait-plusv2.safetensors", adapter_tensors(
        variant, **UNNORM | {"context": 2048 if variant == "unnorm" else 768, "inner": 64}))  # fmt: skip
    assert path.stat().st_size > 0x110000
    digest = hashlib.sha256(path.read_bytes()[0x100000:0x110000]).hexdigest()[:8]
    known = "instantid" if variant == "unnorm" else "faceid-plus"
    monkeypatch.setitem(adapter_file._SHORT_HASHES, digest, known)
    adapter = Adapter.load(path)
    assert adapter.spec.variant == known
    other = "unnorm" if variant == "unnorm" else "faceid-plusv2"
    with pytest.raises(UnitError, match=rf"kind: got '{other}', expected auto, or {known}"):
        adapter.as_kind(other)


def test_the_user_may_say_which_it_is(tmp_path):
    adapter = Adapter.load(path_of(tmp_path))
    first = adapter.as_kind("faceid-plus")
    assert (adapter.spec.variant, first.spec.variant) == ("faceid-plusv2", "faceid-plus")
    assert first.spec.label == "FaceID-Plus"
    assert first.key != adapter.key
    assert adapter.as_kind("auto") is adapter
    with pytest.raises(UnitError, match=r"kind: got 'unnorm', expected auto, or faceid-plusv2 or faceid-plus"):
        adapter.as_kind("unnorm")
    with pytest.raises(UnitError, match=r"expected auto, or base"):
        Adapter.load(write_adapter(tmp_path / "b.safetensors", adapter_tensors())).as_kind("faceid-plus")


def test_the_recogniser_follows_the_kind(tmp_path):
    adapter = Adapter.load(path_of(tmp_path, "unnorm"))
    assert adapter.spec.needs[0].encoder == "antelopev2"
    assert adapter.as_kind("unnorm").spec.needs[0].encoder == "buffalo_l"


def test_a_converted_file_stays_what_its_hash_said(tmp_path, monkeypatch):
    path = path_of(tmp_path, name="plusv2")
    monkeypatch.setattr(adapter_file, "short_hash", lambda p: "d86a490f" if p == path else "")
    target = tmp_path / "plusv2-converted.safetensors"
    assert main(["convert", str(path), str(target), "--dtype", "float16"]) == 0
    assert report(target)["variant"] == "faceid-plus"
    untold = path_of(tmp_path, name="other")
    main(["convert", str(untold), str(tmp_path / "plus.safetensors")])
    assert report(tmp_path / "plus.safetensors")["variant"] == "faceid-plus"  # by its name, as before


# what is in it


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("variant", ["faceid", "faceid-plus"])
def test_every_container_and_style_reads_the_same(tmp_path, variant, style):
    flat = adapter_tensors(variant, **SMALL, lora=4)
    adapter = Adapter.load(write_adapter(tmp_path / "a.bin", flat, style))
    lora = adapter.lora()
    assert len(lora) == 4 * 6
    for (number, target), (down, up) in lora.items():
        assert torch.equal(down, flat[f"ip_adapter.{number}.{target}_lora.down.weight"])
        assert torch.equal(up, flat[f"ip_adapter.{number}.{target}_lora.up.weight"])
    assert Adapter.load(write_adapter(tmp_path / "b.bin", adapter_tensors(variant, **SMALL), style)).lora() == {}


def test_a_lora_under_the_unets_names_is_numbered(tmp_path):
    """accelerate's states as safetensors keep one name of each tensor."""
    places = ["down_blocks.0", "down_blocks.10", "mid_block"]
    flat = adapter_tensors("faceid", **SMALL, lora=4)
    content = {}
    for key, value in flat.items():
        part, _, rest = key.partition(".")
        if part == "image_proj":
            content[f"image_proj_model.{rest}"] = value
            continue
        number, _, rest = rest.partition(".")
        attention = f"attn{1 + int(number) % 2}"
        content[f"unet.{places[int(number) // 2]}.transformer_blocks.0.{attention}.processor.{rest}"] = value
    torch.save(dict(reversed(content.items())), tmp_path / "a.bin")
    file = open_adapter(tmp_path / "a.bin")
    tensors = file.tensors()
    assert tensors.keys() == flat.keys()
    assert file.unused == {}
    assert all(torch.equal(tensors[key], flat[key]) for key in flat)


def test_broken_numbers_in_the_lora_are_told(tmp_path):
    flat = adapter_tensors("faceid", **SMALL, lora=4)
    flat[KEYS[1]][0] = float("nan")
    adapter = Adapter.load(write_adapter(tmp_path / "a.safetensors", flat))
    with pytest.raises(BrokenAdapter, match=rf"NaN or infinite weights in {KEYS[1]}"):
        adapter.lora()


def test_the_shortcut_scales_the_resampled_part(tmp_path):
    """v2 is x + s·r, linear in s; v1 is r."""
    adapter = Adapter.load(path_of(tmp_path))
    features = {"face": F.normalize(torch.randn(2, 512), dim=-1), "penultimate": torch.randn(2, 9, 48)}
    none, half, whole = (adapter.tokens(features, s) for s in (0.0, 0.5, 1.0))
    resampled = adapter.as_kind("faceid-plus").tokens(features, 0.0)
    torch.testing.assert_close(whole - none, resampled)
    torch.testing.assert_close(half, (none + whole) / 2)
    other = adapter.tokens({**features, "penultimate": torch.randn(2, 9, 48)}, 0.0)
    torch.testing.assert_close(other, none)


def test_inspect_says_what_a_face_adapter_takes(tmp_path, capsys):
    path = write_adapter(tmp_path / "plusv2.safetensors", adapter_tensors("faceid-plus", **SMALL, lora=4))
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "FaceID-PlusV2 (faceid-plusv2)" in text
    assert "encoder      buffalo_l, face embedding of length 1 of width 512" in text
    assert "and of the face none known, penultimate features of width 48" in text
    assert "LoRA         rank 4" in text
    assert "kinds        faceid-plusv2 or faceid-plus" in text
    found = report(path)
    assert (found["lora_rank"], found["kinds"]) == (4, ("faceid-plusv2", "faceid-plus"))
    assert [*found["also"]] == [{"feature": "penultimate", "width": 48, "encoder": "", "of": "face"}]
