"""Adapter files that are refused, each with its reason."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.adapters.file import open_adapter
from lib_ipadapter.adapters.variant import identify
from lib_ipadapter.cli import main
from lib_ipadapter.errors import BrokenAdapter, FileError, NotAnAdapter, UnsafeFile, UnsupportedAdapter
from tests.hostile_files import write_torchscript
from tests.synthetic import adapter_tensors, nested, pulid_tensors, write_adapter


def changed(change) -> dict:
    flat = adapter_tensors()
    change(flat)
    return flat


BROKEN = {
    "a layer is missing": (lambda f: f.pop("ip_adapter.3.to_v_ip.weight"), "missing: ip_adapter.3.to_v_ip.weight"),
    "a bias too many": (lambda f: f.update({"ip_adapter.1.to_k_ip.bias": torch.zeros(32)}), "left over: "
                                                                                            "ip_adapter.1.to_k"),
    "a foreign key": (lambda f: f.update({"extra": torch.zeros(2)}), "left over: extra"),
    "a misshapen norm": (lambda f: f.update({"image_proj.norm.bias": torch.zeros(5)}), r"norm.bias is \[5\], "
                                                                                       r"expected \[64\]"),
    "a misshapen layer": (lambda f: f.update({"ip_adapter.5.to_v_ip.weight": torch.zeros(32, 9)}), r"is \[32, 9\]"),
    "no projection": (lambda f: [f.pop(k) for k in list(f) if k.startswith("image_proj")], "no known image projection"),
    "no attention": (lambda f: [f.pop(k) for k in list(f) if k.startswith("ip_adapter")], "no attention weights"),
    "whole numbers": (lambda f: f.update({"ip_adapter.1.to_k_ip.weight": torch.zeros(32, 64, dtype=torch.int8)}),
                      "must be floating point"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_broken_adapter_lists_its_keys(tmp_path, name, suffix):
    change, message = BROKEN[name]
    path = write_adapter(tmp_path / f"a{suffix}", changed(change), "flat pickle")
    with pytest.raises(BrokenAdapter, match=message) as caught:
        Adapter.load(path)
    assert str(caught.value).startswith(path.name)


def test_nan_in_the_projection_is_told(tmp_path):
    path = write_adapter(tmp_path / "a.safetensors", changed(lambda f: f["image_proj.norm.bias"].fill_(float("nan"))))
    with pytest.raises(BrokenAdapter, match=r"NaN or infinite weights in image_proj\.norm\.bias"):
        Adapter.load(path).tokens(torch.zeros(1, 48))


def test_infinite_attention_weights_are_told(tmp_path):
    flat = changed(lambda f: f["ip_adapter.3.to_v_ip.weight"][0].fill_(float("inf")))
    adapter = Adapter.load(write_adapter(tmp_path / "a.safetensors", flat))
    adapter.weights(0)
    with pytest.raises(BrokenAdapter, match=r"NaN or infinite weights in ip_adapter\.3\.to_v_ip"):
        adapter.weights(1)


def test_values_that_are_all_zero_are_told(tmp_path):
    """Such a file would draw the base picture without a word."""

    def zeroed(tensors, kept=""):
        return [t.zero_() for name, t in tensors.items() if "to_v_ip" in name and name != kept]

    path = write_adapter(tmp_path / "a.safetensors", changed(zeroed))
    with pytest.raises(BrokenAdapter, match="all of its to_v_ip weights are 0"):
        Adapter.load(path)
    one = changed(lambda tensors: zeroed(tensors, "ip_adapter.3.to_v_ip.weight"))
    Adapter.load(write_adapter(tmp_path / "one.safetensors", one))


GOOD = {
    v: {k: tuple(t.shape) for k, t in adapter_tensors(v, lora=2 * v.startswith("face")).items()}
    for v in ("base", "plus", "full", "faceid", "faceid-plus")
}
PULID = {"pulid": "v1", "pulid-v1.1": "v1.1"}
GOOD |= {
    name: {k: tuple(t.shape) for k, t in pulid_tensors(version, converted=True).items()}
    for name, version in PULID.items()
}
SHAPE = st.lists(st.sampled_from([0, 1, 2, 32, 64, 512, 1280]), max_size=4).map(tuple)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_shapes_are_known_or_refused_with_our_own_error(data):
    shapes = dict(GOOD[data.draw(st.sampled_from(sorted(GOOD)))])
    for key in data.draw(st.lists(st.sampled_from(sorted(shapes)), min_size=1, max_size=3, unique=True)):
        old, new = shapes.pop(key), data.draw(st.none() | SHAPE)
        name = data.draw(st.sampled_from([key, f"{key}.x", key.replace("1", "a"), key.replace("1", "7")]))
        shapes |= {} if new is None else {name: new or old} if name != key else {name: new}
    try:
        answer = identify(shapes, "f").variant
    except FileError as error:
        answer = str(error)
    assert answer in {*GOOD, "faceid-plusv2", "portrait"} or answer.startswith("f: ")


Z = torch.zeros
UNSUPPORTED = {
    "PuLID for Flux": {"pulid_encoder.latents": Z(1), "pulid_ca.0.norm1.weight": Z(1)},
    "FaceID for Kolors": {"image_proj.perceiver_resampler.proj_in.weight": Z(3, 1024),
                          "image_proj.norm.weight": Z(4096), "ip_adapter.1.to_k_ip.weight": Z(2, 2048)},
    "Kolors": {"image_proj.latents": Z(1, 16, 2048), "image_proj.proj_in.weight": Z(2048, 1024),
               "image_proj.layers.0.0.to_out.weight": Z(2048, 768)},
    "SD3": {"image_proj.time_embedding.linear_1.weight": Z(1), "ip_adapter.0.norm_ip.linear.weight": Z(1)},
    "Flux": {"double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": Z(1),
    "ip_adapter_proj_model.norm.bias": Z(1)},
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_kinds_that_do_not_run_yet_are_named(tmp_path, name):
    path = write_adapter(tmp_path / "a.bin", UNSUPPORTED[name], "flat pickle")
    with pytest.raises(UnsupportedAdapter, match=f"this is (an IP-Adapter (for )?)?{name.split(' (')[0]}\\b"):
        Adapter.load(path)


FOREIGN = {
    "a LoRA": "lora_unet_down_blocks_0.lora_down.weight",
    "a ControlNet": "control_model.input_blocks.0.weight",
    "a T2I-Adapter": "body.0.block1.weight",
    "a whole Stable Diffusion checkpoint": "model.diffusion_model.out.0.weight",
    "a CLIP image encoder": "vision_model.embeddings.class_embedding",
    "a text encoder": "text_model.embeddings.position_embedding.weight",
    "a VAE": "first_stage_model.decoder.conv_in.weight",
    "a textual inversion": "emb_params",
    "an AnimateDiff motion module": "down_blocks.0.motion_modules.0.norm.weight",
    "a file of 1 tensors": "something.else",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_that_are_no_adapter_are_named(tmp_path, kind):
    path = tmp_path / "a.safetensors"
    save_file({FOREIGN[kind]: Z(2)}, path)
    with pytest.raises(NotAnAdapter, match=f"no IP-Adapter but {kind}"):
        Adapter.load(path)


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def evil(path: Path, trace: Path) -> None:
    torch.save(nested(adapter_tensors()) | {"x": Evil(trace)}, path)


def evil_legacy(path: Path, trace: Path) -> None:
    torch.save({"image_proj": Evil(trace)}, path, _use_new_zipfile_serialization=False)


def evil_plain(path: Path, trace: Path) -> None:
    path.write_bytes(pickle.dumps({"image_proj": Evil(trace)}))


@pytest.mark.parametrize("write", [evil, evil_legacy, evil_plain])
def test_a_pickle_with_code_is_refused_and_does_nothing(tmp_path, write):
    path, trace = tmp_path / "evil.bin", tmp_path / "trace"
    write(path, trace)
    with pytest.raises(UnsafeFile, match=r"carries code: it asks for '(pathlib.Path|__builtin__.getattr)"):
        Adapter.load(path)
    assert not trace.exists()


def _cut(path: Path) -> None:
    write_adapter(path, adapter_tensors())
    path.write_bytes(path.read_bytes()[:-100])


def _zip(path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    path.write_bytes(buffer.getvalue())


UNREADABLE = {
    "empty": (lambda p: p.write_bytes(b""), "the file is empty"),
    "a web page": (
        lambda p: p.write_text("<!DOCTYPE html><html>not found</html>"),
        "a web page, not a model",
    ),
    "a Git LFS pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "Git LFS pointer",
    ),
    "noise": (lambda p: p.write_bytes(bytes(range(1, 256)) * 9), "neither a safetensors file nor a pickle"),
    "a header that is no JSON": (
        lambda p: p.write_bytes(struct.pack("<Q", 4) + b"oops"),
        "neither a safetensors",
    ),
    "a header that is no table": (
        lambda p: p.write_bytes(struct.pack("<Q", 8) + b'{"a": 1}'),
        "not a valid safetensors file",
    ),
    "cut off": (_cut, "not a valid safetensors file .cut off"),
    "a folder": (lambda p: p.mkdir(), "this is a folder"),
    "a zip of something else": (_zip, "a zip archive that torch did not write .in it: 'readme.txt'"),
    "a pickled list": (lambda p: torch.save([torch.zeros(2)], p), "holds no dictionary"),
    "missing": (lambda p: None, "cannot be read: No such file"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files_say_what_is_wrong(tmp_path, name):
    make, message = UNREADABLE[name]
    path = tmp_path / "a.safetensors"
    make(path)
    with pytest.raises(FileError, match=message) as caught:
        Adapter.load(path)
    assert str(caught.value).startswith("a.safetensors: ")


def _entry(**changes: object) -> dict:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}


HEADERS = {
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 4]}},
    "no offsets": {"a": {"dtype": "F32", "shape": [1]}},
    "a shape that is null": _entry(shape=None),
    "a negative size": _entry(shape=[-1]),
    "offsets that are words": _entry(data_offsets=["x", "y"]),
    "one offset": _entry(data_offsets=[4]),
    "more elements than bytes": _entry(shape=[1 << 40]),
    "another dtype than the bytes": _entry(dtype="F16"),
    "a dtype that is a list": _entry(dtype=["F32"]),
    "metadata that is a number": _entry() | {"__metadata__": 5},
    "a list": [1, 2],
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_malformed_header_is_refused(tmp_path, name):
    header, path = json.dumps(HEADERS[name]).encode(), tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(UnsafeFile, match=r"neither a safetensors file nor a pickle|not a valid safetensors file"):
        open_adapter(path)


def test_a_header_nested_without_end_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000)
    with pytest.raises(UnsafeFile, match="neither a safetensors file nor a pickle"):
        open_adapter(path)


@pytest.mark.parametrize("command", ["inspect", "convert"])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_script_archive_is_never_run(tmp_path, command, suffix, capsys):
    """A1: `inspect evil.bin` ran what was in the file, and then refused it."""
    path = write_torchscript(tmp_path / f"evil{suffix}", tmp_path / "trap")
    more = [str(tmp_path / "out.safetensors")] if command == "convert" else []
    assert main([command, str(path), *more]) in (1, 2)
    assert f"evil{suffix}: refused: a TorchScript archive, which holds a program" in capsys.readouterr().err
    assert not (tmp_path / "trap").exists()
    assert not (tmp_path / "out.safetensors").exists()
