"""Files of ostris/ai-toolkit's IP-Adapter trainer, as its toolkit/ip_adapter.py writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.adapters.file import open_adapter
from lib_ipadapter.cli import main
from lib_ipadapter.encoders import Catalog, EncoderSource, ImageEncoder
from lib_ipadapter.errors import UnsupportedAdapter
from lib_ipadapter.evaluation.methods import Encoders
from tests.synthetic import adapter_tensors
from tests.tiny_tower import TINY, as_hugging_face, picture, tiny_weights

Tensors = dict[str, torch.Tensor]
pytestmark = pytest.mark.usefixtures("tiny_registered")


def written(path: Path, tensors: Tensors) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


@pytest.mark.parametrize("shape", [(1,), ()])
def test_a_layers_factor_acts_on_the_tokens_that_it_reads(tmp_path: Path, shape: tuple[int, ...]):
    """ai-toolkit: ip_hidden_states * ip_scaler, then to_k_ip and to_v_ip."""
    flat = adapter_tensors("plus")
    factors = {1: 0.5, 3: 0.999, 5: -2.0}
    own = {f"ip_adapter.{n}.ip_scaler": torch.tensor(value).view(shape) for n, value in factors.items()}
    adapter = Adapter.load(written(tmp_path / "a.safetensors", flat | own))
    tokens = torch.randn(4, 64)
    for index, (number, factor) in enumerate(factors.items()):
        for mine, kind in zip(adapter.weights(index), ("to_k_ip", "to_v_ip"), strict=True):
            theirs = (tokens * factor) @ flat[f"ip_adapter.{number}.{kind}.weight"].T
            torch.testing.assert_close(tokens @ mine.T, theirs)
    assert "scalar" not in open_adapter(tmp_path / "a.safetensors").unused


def test_a_factor_keeps_the_dtype_and_outlives_a_conversion(tmp_path: Path):
    flat = adapter_tensors(dtype=torch.float16)
    own = {"ip_adapter.3.ip_scaler": torch.tensor([0.25], dtype=torch.float16)}
    written(tmp_path / "a.safetensors", flat | own)
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 0
    found = load_file(tmp_path / "b.safetensors")
    assert found.keys() == flat.keys()
    assert torch.equal(found["ip_adapter.3.to_k_ip.weight"], flat["ip_adapter.3.to_k_ip.weight"] * 0.25)
    assert torch.equal(found["ip_adapter.1.to_k_ip.weight"], flat["ip_adapter.1.to_k_ip.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_factor_of_more_than_one_neither_overflows_nor_is_rounded_twice(tmp_path: Path, dtype: torch.dtype):
    flat = adapter_tensors()
    key, largest = "ip_adapter.3.to_k_ip.weight", torch.finfo(dtype).max
    flat[key] = torch.linspace(-largest, largest, flat[key].numel()).view_as(flat[key])
    flat = {name: value.to(dtype) for name, value in flat.items()}
    own = {"ip_adapter.3.ip_scaler": torch.tensor([3.0])}
    found = open_adapter(written(tmp_path / "a.safetensors", flat | own)).tensors()[key].float()
    if dtype != torch.bfloat16:  # which reaches as far as float32
        assert torch.equal(found, flat[key].float() * 3)


def test_a_conversion_to_a_dtype_without_room_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written(tmp_path / "a.safetensors", {**adapter_tensors(), "ip_adapter.3.ip_scaler": torch.tensor([1e7])})
    command = ["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--dtype"]
    assert main([*command, "float16"]) == 2
    assert "to_k_ip.weight has weights that float16 has no room for" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()
    assert main([*command, "bfloat16"]) == 0


def clip_face(flat: Tensors) -> Tensors:
    layers = {key: value for key, value in flat.items() if key.startswith("ip_adapter.")}
    sizes = {"norm.weight": (48,), "norm.bias": (48,), "proj.0.weight": (96, 48), "proj.0.bias": (96,),
             "proj.2.weight": (256, 96), "proj.2.bias": (256,)}  # fmt: skip
    return layers | {f"image_proj.{key}": torch.ones(shape) for key, shape in sizes.items()}


def of_transformer(flat: Tensors) -> Tensors:
    layers = {f"ip_adapter.{n}.{kind}.weight": torch.ones(32, 64) for n in range(4) for kind in ("to_k_ip", "to_v_ip")}
    return {key: value for key, value in flat.items() if key.startswith("image_proj.")} | layers


REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "factors alone": (lambda f: {f"ip_scale.{n}.ip_scaler": torch.ones(1) for n in (1, 3)}, "train_scaler.*merge_scal"),
    "a factor for each token": (lambda f: {**f, "ip_adapter.1.ip_scaler": torch.ones(4)}, "a factor for each token"),
    "ipz": (lambda f: {**f, "image_proj.ctx_alpha.fc1.weight": torch.ones(4, 4)}, "ai-toolkit's kind ipz"),
    "clip+": (lambda f: {**f, "preprocessor.conv.weight": torch.ones(4, 4)}, r"ai-toolkit's encoder clip\+"),
    "ip_clip_face": (clip_face, "ai-toolkit's kind ip_clip_face"),
    "PixArt": (of_transformer, r"for a transformer \(PixArt, Flux\)"),
    "an encoder trained along": (
        lambda f: {**f, "image_encoder.vision_model.embeddings.class_embedding": torch.ones(8)},
        "trained with it.*convert a.safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_run_says_what_it_is(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]):
    change, reason = REFUSED[name]
    path = written(tmp_path / "a.safetensors", change(adapter_tensors()))
    with pytest.raises(UnsupportedAdapter, match=reason):
        Adapter.load(path)
    assert main(["inspect", str(path)]) == 1
    assert "ai-toolkit" in capsys.readouterr().err


def test_an_encoder_that_was_trained_along_becomes_a_file_that_the_adapter_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tower = tiny_weights(seed=5)
    beside = {f"image_encoder.{k}": v for k, v in as_hugging_face(tower).items() if not k.startswith("text_model")}
    source = written(tmp_path / "a.safetensors", adapter_tensors("plus", feature_width=TINY.width) | beside)
    folder = tmp_path / "out"
    folder.mkdir()
    assert main(["convert", str(source), str(folder / "mine.safetensors")]) == 0
    assert "mine-encoder.safetensors: its image encoder" in capsys.readouterr().out
    # The tower itself is there too, and is not taken for it.
    written(folder / "usual.safetensors", {f"visual.{key}": value for key, value in tiny_weights(seed=1).items()})
    adapter = Adapter.load(folder / "mine.safetensors")
    need = adapter.spec.needs[0]
    assert need.encoder == "mine-encoder"
    found = EncoderSource(Catalog([folder])).encode(picture(), need)
    written(tmp_path / "alone.safetensors", {f"visual.{key}": value for key, value in tower.items()})
    wanted = ImageEncoder.load(tmp_path / "alone.safetensors").encode(picture(), "penultimate").penultimate
    assert torch.equal(found, wanted)
    assert main(["convert", str(source), str(folder / "mine.safetensors")]) == 2
    assert main(["convert", str(source), str(folder / "mine.safetensors"), "--force"]) == 0
    before = Encoders([folder]).identity(adapter.spec)
    config = folder / "mine-encoder.json"
    config.write_text(config.read_text().replace('"head_width": 32', '"head_width": 64'))
    changed = Encoders([folder]).identity(adapter.spec)
    assert changed["encoder"] == before["encoder"]
    assert changed != before, "an evaluation would mix pictures of two towers"
    (folder / "other-encoder.json").write_text("somebody's")
    assert main(["convert", str(source), str(folder / "other.safetensors")]) == 2
    assert "other-encoder.json: exists already" in capsys.readouterr().err
    assert (folder / "other-encoder.json").read_text() == "somebody's"


def test_an_encoder_that_is_no_clip_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    beside = {"image_encoder.convnext.embeddings.patch_embeddings.weight": torch.ones(4, 3, 4, 4)}
    source = written(tmp_path / "a.safetensors", adapter_tensors() | beside)
    assert main(["convert", str(source), str(tmp_path / "b.safetensors")]) == 2
    assert "none of the known CLIP towers" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()
