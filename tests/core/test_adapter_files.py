"""Adapter files: known for what they are, read from every container, converted."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.adapters.file import open_adapter, save_adapter, sha256
from lib_ipadapter.adapters.variant import identify
from lib_ipadapter.cli import main
from lib_ipadapter.errors import FileError
from tests.full_disk import full_disk
from tests.synthetic import SD1_WIDTHS, SDXL_WIDTHS, STYLES, adapter_tensors, write_adapter

# The published files: their shapes, and what they are. (Tokens, dim, inner and depth are the resampler's.)
H, BIGG = 1024, 1280
PUBLISHED = {
    "ip-adapter_sd15": (("base", 768, SD1_WIDTHS, H, 4, 0, 0), "SD1.5", "ViT-H-14", "pooled", 4),
    "ip-adapter_sd15_vit-G": (("base", 768, SD1_WIDTHS, BIGG, 4, 0, 0), "SD1.5", "ViT-bigG-14", "pooled", 4),
    "ip-adapter_sd21": (("base", 1024, SD1_WIDTHS, H, 4, 0, 0), "SD2.1", "ViT-H-14", "pooled", 4),
    "ip-adapter-plus_sd15": (("plus", 768, SD1_WIDTHS, 1280, 16, 768, 768), "SD1.5", "ViT-H-14", "penultimate", 16),
    "ip-adapter-full-face_sd15": (("full", 768, SD1_WIDTHS, 1280, 0, 0, 0), "SD1.5", "ViT-H-14", "penultimate", 257),
    "ip-adapter_sdxl": (("base", 2048, SDXL_WIDTHS, BIGG, 4, 0, 0), "SDXL", "ViT-bigG-14", "pooled", 4),
    "ip-adapter_sdxl_vit-h": (("base", 2048, SDXL_WIDTHS, H, 4, 0, 0), "SDXL", "ViT-H-14", "pooled", 4),
    "ip-adapter-plus_sdxl_vit-h": (("plus", 2048, SDXL_WIDTHS, 1280, 16, 1280, 1280), "SDXL", "ViT-H-14",
                                   "penultimate", 16),
}  # fmt: skip


def shapes_of(args: tuple) -> dict[str, tuple[int, ...]]:
    variant, context, widths, width, tokens, dim, inner = args
    with torch.device("meta"):
        from lib_ipadapter.adapters.projection import LinearProjection, MLPProjection, Resampler

        module = {
            "base": lambda: LinearProjection(width, tokens, context),
            "full": lambda: MLPProjection(width, context),
            "plus": lambda: Resampler(width, tokens, dim, inner, 4 * dim, 4, context),
        }[variant]()
    shapes = {f"image_proj.{key}": tuple(value.shape) for key, value in module.state_dict().items()}
    for i, width in enumerate(widths):
        shapes |= {f"ip_adapter.{2 * i + 1}.{kind}.weight": (width, context) for kind in ("to_k_ip", "to_v_ip")}
    return shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_are_known_for_what_they_are(name):
    args, base, encoder, feature, tokens = PUBLISHED[name]
    spec = identify(shapes_of(args), "whatever.bin")
    assert (spec.variant, spec.base, spec.encoder, spec.feature, spec.tokens) == (
        args[0],
        base,
        encoder,
        feature,
        tokens,
    )
    assert spec.widths == tuple(args[2])


CONTAINERS = [
    (".safetensors", "safetensors"),
    (".safetensors", "accelerate"),
    *((".bin", style) for style in STYLES),
]


@pytest.mark.parametrize(("suffix", "style"), [*CONTAINERS, (".pth", "pickle")])
@pytest.mark.parametrize("variant", ["base", "plus", "full"])
def test_every_container_and_style_reads_the_same(tmp_path, variant, suffix, style):
    flat = adapter_tensors(variant)
    adapter = Adapter.load(write_adapter(tmp_path / f"a{suffix}", flat, style))
    assert adapter.spec.variant == variant
    assert adapter.spec.widths == (32, 64, 32)
    for i in range(3):
        key, value = adapter.weights(i)
        assert torch.equal(key, flat[f"ip_adapter.{2 * i + 1}.to_k_ip.weight"])
        assert torch.equal(value, flat[f"ip_adapter.{2 * i + 1}.to_v_ip.weight"])


def test_tokens_have_the_shape_that_the_spec_says(tmp_path):
    for variant, features in {"base": (3, 48), "plus": (3, 9, 48), "full": (3, 9, 48)}.items():
        adapter = Adapter.load(write_adapter(tmp_path / "a.safetensors", adapter_tensors(variant)))
        tokens = adapter.tokens(torch.randn(features))
        assert tokens.shape == (3, 9 if variant == "full" else adapter.spec.tokens, 64)
        assert tokens.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(tmp_path, dtype):
    adapter = Adapter.load(write_adapter(tmp_path / "a.safetensors", adapter_tensors(dtype=dtype)))
    assert adapter.weights(0)[0].dtype == dtype
    assert adapter.tokens(torch.randn(1, 48)).dtype == torch.float32


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["faceid v2", "ip-adapter-plus_sdxl", "instantid", "lora", "x" * 60, "ä ö"]),
       folder=st.sampled_from(["faceid v2", "controlnet", "sdxl"]))  # fmt: skip
def test_neither_name_nor_folder_matters(tmp_path, name, folder):
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    spec = Adapter.load(write_adapter(place / f"{name}.safetensors", adapter_tensors("plus"))).spec
    assert spec == identify({k: tuple(v.shape) for k, v in adapter_tensors("plus").items()}, "a")


def test_a_wrong_extension_is_opened_by_its_content(tmp_path):
    write_adapter(tmp_path / "a.bin", adapter_tensors(), "pickle").rename(tmp_path / "a.safetensors")
    assert open_adapter(tmp_path / "a.safetensors").format == "pickle"


@pytest.mark.parametrize("first", [0x80, ord("P")])
def test_a_header_whose_length_looks_like_a_pickle(tmp_path, first):
    """The first bytes of a safetensors file are its header's length: any bytes."""
    flat = adapter_tensors()
    for size in range(300):
        path = write_adapter(tmp_path / "a.safetensors", flat, note="x" * size)
        if path.read_bytes()[0] == first:
            assert open_adapter(path).format == "safetensors"
            return
    pytest.fail(f"no header length begins with {first:#x}")


def test_identifying_reads_the_header_only(tmp_path, monkeypatch):
    path = write_adapter(tmp_path / "a.safetensors", adapter_tensors())
    monkeypatch.setattr("safetensors.safe_open", lambda *a, **k: pytest.fail("tensors were opened"))
    identify(open_adapter(path).shapes, path)


@pytest.mark.parametrize("change", ["overwritten", "cut off"])
@pytest.mark.parametrize("style", STYLES)
def test_a_loaded_adapter_does_not_follow_its_file(tmp_path, style, change):
    """A download over it, or \"cp\", truncates a file in place: mapped memory would kill the process."""
    flat = adapter_tensors()
    path = write_adapter(tmp_path / "a.bin", flat, style)
    adapter = Adapter.load(path)
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size) if change == "overwritten" else file.truncate(10)
    for layer in range(3):
        key = f"ip_adapter.{2 * layer + 1}.to_k_ip.weight"
        assert torch.equal(adapter.weights(layer)[0], flat[key])
    assert adapter.tokens(torch.ones(1, flat["image_proj.proj.weight"].shape[1])).isfinite().all()


# the command line


def test_inspect_prints_what_a_file_is(tmp_path, capsys):
    path = write_adapter(tmp_path / "mine.safetensors", adapter_tensors(feature_width=1024), base="small")
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    for part in ("mine.safetensors", "base / light", "custom (context 64)", "ViT-H-14, pooled", "4 per picture",
                 "F32, safetensors", sha256(path), "metadata base small"):  # fmt: skip
        assert part in text


def test_inspect_json_shows_good_files_beside_bad_ones(tmp_path, capsys):
    good = write_adapter(tmp_path / "good.bin", adapter_tensors("plus"), "pickle")
    (tmp_path / "bad.bin").write_bytes(b"")
    assert main(["inspect", "--json", str(tmp_path / "bad.bin"), str(good)]) == 1
    out = capsys.readouterr()
    bad, fine = json.loads(out.out)
    assert bad["error"] == "UnsafeFile"
    assert (fine["variant"], fine["layers"], fine["format"]) == ("plus", 3, "pickle")
    assert out.err.startswith("error: bad.bin: the file is empty")


@pytest.mark.parametrize("style", STYLES)
def test_convert_keeps_every_tensor(tmp_path, style, capsys):
    flat = adapter_tensors("plus", dtype=torch.float16)
    source = write_adapter(tmp_path / "a.pth", flat, style)
    assert main(["convert", str(source), str(tmp_path / "b.safetensors")]) == 0
    again = open_adapter(tmp_path / "b.safetensors").tensors()
    assert again.keys() == flat.keys()
    assert all(torch.equal(again[key], flat[key]) for key in flat)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "b.safetensors"]


def test_convert_refuses_to_overwrite_and_keeps_metadata(tmp_path, capsys):
    source = write_adapter(tmp_path / "a.safetensors", adapter_tensors(), steps="7")
    target = tmp_path / "b.safetensors"
    assert main(["convert", str(source), str(target)]) == 0
    assert main(["convert", str(source), str(target)]) == 2
    assert "exists already; pass --force" in capsys.readouterr().err
    assert main(["convert", str(source), str(target), "--force", "--dtype", "float16"]) == 0
    file = open_adapter(target)
    assert file.metadata["steps"] == "7"
    assert set(file.dtypes.values()) == {"F16"}


def test_a_failed_write_is_said_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "b.safetensors"
    save_adapter(adapter_tensors(), path)
    before = path.read_bytes()
    for size in (100, len(before) - 1):
        with (
            pytest.raises(FileError, match=r"b\.safetensors.*cannot be written.*File too large"),
            full_disk(size),
        ):
            save_adapter(adapter_tensors(), path)
    assert [held.name for held in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_the_same_content_makes_the_same_bytes(tmp_path):
    """Or nobody could tell by a hash whether a training was repeated exactly."""
    said = {f"field {n}": 'a "quote", é, 画像, a tab\t, a bell\x07 and a \x7f' for n in range(12)}
    save_adapter(adapter_tensors(), tmp_path / "a.safetensors", said)
    save_adapter(adapter_tensors(), tmp_path / "b.safetensors", dict(reversed(said.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    file = open_adapter(tmp_path / "a.safetensors")
    assert file.metadata == {"format": "pt", **said}
    read = file.tensors()
    assert all(torch.equal(read[key], value) for key, value in adapter_tensors().items())
