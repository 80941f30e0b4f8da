"""PuLID's files: which is which, with every key accounted for, and the tokens that their encoders make of a face."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.adapters.file import open_adapter
from lib_ipadapter.adapters.inspect import report
from lib_ipadapter.adapters.layout import standard_layout
from lib_ipadapter.adapters.variant import identify
from lib_ipadapter.cli import main
from lib_ipadapter.encoders.spec import Need
from lib_ipadapter.errors import BrokenAdapter, UnsupportedAdapter
from lib_ipadapter.files.library import Folder, Library
from tests.synthetic import SDXL_WIDTHS, pulid_tensors, write_adapter

VERSIONS = {"v1": "pulid", "v1.1": "pulid-v1.1"}
FORMS = [("v1", False), ("v1", True), ("v1.1", False), ("v1.1", True)]


def written(tmp_path, version: str, converted: bool = False, style: str = "safetensors", **sizes):
    name = "a.safetensors" if style == "safetensors" else "a.bin"
    return write_adapter(tmp_path / name, pulid_tensors(version, converted=converted, **sizes), style)


@pytest.mark.parametrize(("version", "converted"), FORMS)
@pytest.mark.parametrize("style", ["safetensors", "flat pickle"])
def test_each_form_is_known_for_what_it_is(tmp_path, version, converted, style):
    adapter = Adapter.load(written(tmp_path, version, converted, style))
    spec = adapter.spec
    assert spec.variant == VERSIONS[version]
    assert (spec.tokens, spec.context, spec.widths, spec.lora_rank) == (
        10 if version == "v1" else 8,
        64,
        (32, 64, 32),
        0,
    )
    assert spec.needs == (
        Need("raw face", 512, "antelopev2", "face"), Need("pooled", 40, "", "bare face"),
        Need("levels", 96, "", "bare face"),
    )  # fmt: skip
    assert (spec.of_face, spec.corrected, spec.joint) == (True, True, version == "v1.1")
    key, value = adapter.weights(1)
    flat = pulid_tensors(version)
    assert torch.equal(key, flat["id_adapter_attn_layers.3.id_to_k.weight"])
    assert torch.equal(value, flat["id_adapter_attn_layers.3.id_to_v.weight"])


@pytest.mark.parametrize(("version", "converted"), FORMS)
def test_the_published_shapes(version, converted):
    sizes = {"context": 2048, "widths": SDXL_WIDTHS, "pooled": 768, "hidden": 1024, "dim": 1024, "tokens": 32}
    with torch.device("meta"):
        flat = pulid_tensors(version, **sizes, depth=10, converted=converted, seed=None)
    shapes = {key: tuple(value.shape) for key, value in flat.items()}
    assert len(shapes) == {"v1": 110, "v1.1": 172}[version] + 140
    layout = standard_layout(shapes, "a")
    spec = identify({key: shapes[own] for key, (own,) in layout.source.items()}, "a.bin")
    assert (spec.variant, spec.base, spec.tokens) == (VERSIONS[version], "SDXL", 10 if version == "v1" else 32)
    assert [need.encoder for need in spec.needs] == ["antelopev2", "EVA02-L-14-336", "EVA02-L-14-336"]
    assert not layout.unused


@pytest.mark.parametrize("version", VERSIONS)
def test_every_key_is_accounted_for(version):
    flat = pulid_tensors(version, converted=True)
    shapes = {key: tuple(value.shape) for key, value in flat.items()}
    for key in shapes:
        without = {name: shape for name, shape in shapes.items() if name != key}
        with pytest.raises(BrokenAdapter):
            identify(without, "a")
    for key in ("image_proj.mapping_5.0.weight", "image_proj.layers.7.0.norm1.weight", "ip_adapter.7.to_k_ip.weight"):
        with pytest.raises(BrokenAdapter, match=r"left over|missing"):
            identify({**shapes, key: (4, 4)}, "a")
    key = "image_proj.mapping_3.4.bias"
    with pytest.raises(BrokenAdapter, match=rf"{key} is \[3\], expected \[64\]"):
        identify({**shapes, key: (3,)}, "a")


def test_pulid_for_flux_is_named():
    shapes = {"pulid_encoder.latents": (1, 32, 1024), "pulid_ca.0.norm1.weight": (3072,)}
    with pytest.raises(UnsupportedAdapter, match="this is PuLID for Flux, which needs a Flux model"):
        identify(shapes, "a")


# the encoders, restated


def mlp(flat: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    for linear, norm in ((0, 1), (3, 4)):
        x = x @ flat[f"{name}.{linear}.weight"].T + flat[f"{name}.{linear}.bias"]
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = x * flat[f"{name}.{norm}.weight"] + flat[f"{name}.{norm}.bias"]
        x = torch.where(x > 0, x, 0.01 * x)
    return x @ flat[f"{name}.6.weight"].T + flat[f"{name}.6.bias"]


def attend(flat: dict[str, Tensor], name: str, features: Tensor, latents: Tensor) -> Tensor:
    width = features.shape[-1]
    features = F.layer_norm(features, (width,), flat[f"{name}.norm1.weight"], flat[f"{name}.norm1.bias"])
    latents = F.layer_norm(latents, (width,), flat[f"{name}.norm2.weight"], flat[f"{name}.norm2.bias"])
    key, value = (torch.cat([features, latents], 1) @ flat[f"{name}.to_kv.weight"].T).chunk(2, -1)
    query = latents @ flat[f"{name}.to_q.weight"].T
    heads = [
        (q @ k.mT / 8).softmax(-1) @ v
        for q, k, v in zip(query.split(64, -1), key.split(64, -1), value.split(64, -1), strict=True)
    ]
    return torch.cat(heads, -1) @ flat[f"{name}.to_out.weight"].T


def restated(version: str, flat: dict[str, Tensor], face: Tensor, pooled: Tensor, levels: Tensor) -> Tensor:
    """Of n faces: face [n, 512], pooled [n, E], levels [5, n·N, W]; v1: of one."""
    flat = {key.removeprefix("id_adapter."): value for key, value in flat.items()}
    length = pooled.norm(dim=-1, keepdim=True)
    z = torch.cat([face, pooled / torch.where(length > 0, length, torch.ones(1))], -1)
    if version == "v1":
        tokens = list(mlp(flat, "body", z[0]).reshape(5, -1))
        for i, hidden in enumerate(levels):
            patches = torch.stack([mlp(flat, f"mapping_patch_{i}", patch) for patch in hidden[1:]])
            tokens.append(mlp(flat, f"mapping_{i}", hidden[0]) + patches.mean(0))
        return torch.stack(tokens)
    faces = mlp(flat, "id_embedding_mapping", z).reshape(1, 5 * len(z), -1)
    latents = torch.cat([flat["latents"], faces], 1)
    depth = len({key.split(".")[1] for key in flat if key.startswith("layers.")})
    for layer in range(depth):
        i = layer // (depth // 5)
        features = torch.cat([faces, mlp(flat, f"mapping_{i}", levels[i])[None]], 1)
        latents = attend(flat, f"layers.{layer}.0", features, latents) + latents
        forward = F.layer_norm(
            latents, latents.shape[-1:], flat[f"layers.{layer}.1.0.weight"], flat[f"layers.{layer}.1.0.bias"]
        )
        latents = (
            F.gelu(forward @ flat[f"layers.{layer}.1.1.weight"].T) @ flat[f"layers.{layer}.1.3.weight"].T + latents
        )
    return (latents[:, : flat["latents"].shape[1]] @ flat["proj_out"])[0]


def features(faces: int = 1, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        20 * torch.randn(faces, 512, generator=generator), 3 * torch.randn(faces, 40, generator=generator),
        2 * torch.randn(5, faces * 7, 96, generator=generator),
    )  # fmt: skip


def close(mine: Tensor, theirs: Tensor) -> None:
    assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.parametrize(("version", "depth"), [("v1", 5), ("v1.1", 5), ("v1.1", 10)])
def test_tokens_are_the_formula(tmp_path, version, depth):
    adapter = Adapter.load(written(tmp_path, version, depth=depth))
    flat = pulid_tensors(version, depth=depth)
    face, pooled, levels = features()
    given = {"raw face": face, "pooled": pooled, "levels": levels[None]}
    close(adapter.tokens(given)[0], restated(version, flat, face, pooled, levels))
    nothing = {key: torch.zeros_like(value) for key, value in given.items()}
    zeros = [torch.zeros_like(x) for x in (face, pooled, levels)]
    close(adapter.tokens(nothing)[0], restated(version, flat, *zeros))
    longer = {**given, "pooled": 3 * pooled}
    close(adapter.tokens(longer), adapter.tokens(given))
    assert not torch.allclose(adapter.tokens({**given, "raw face": 0.5 * face}), adapter.tokens(given), atol=1e-3)


def test_several_faces_at_once(tmp_path):
    adapter = Adapter.load(written(tmp_path, "v1.1"))
    face, pooled, levels = features(3)
    given = {"raw face": face[None], "pooled": pooled[None], "levels": levels[None]}
    close(adapter.tokens(given)[0], restated("v1.1", pulid_tensors("v1.1"), face, pooled, levels))


# commands and lists


@pytest.mark.parametrize("version", VERSIONS)
def test_convert_writes_the_standard_keys(tmp_path, version):
    source, target = written(tmp_path, version, style="flat pickle"), tmp_path / "b.safetensors"
    assert main(["convert", str(source), str(target)]) == 0
    file = open_adapter(target)
    wanted = pulid_tensors(version, converted=True)
    assert file.tensors().keys() == wanted.keys()
    assert all(torch.equal(file.tensors()[key], value) for key, value in wanted.items())
    assert Adapter.load(target).spec == Adapter.load(source).spec


def test_inspect_says_what_it_takes(tmp_path, capsys):
    path = written(tmp_path, "v1.1")
    found = report(path)
    assert (found["variant"], found["label"], found["encoder"]) == ("pulid-v1.1", "PuLID v1.1", "antelopev2")
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "PuLID v1.1 (pulid-v1.1)" in said
    assert "pooled features of width 40" in said
    assert "levels features of width 96" in said


def test_it_is_listed_in_a_shared_folder(tmp_path):
    written(tmp_path, "v1")
    written(tmp_path, "v1", style="flat pickle")
    library = Library([Folder(tmp_path, shared=True)])
    library.refresh()
    assert sorted(library.names()) == ["a.bin", "a.safetensors"]
