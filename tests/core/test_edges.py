"""Edges that a reviewer found: each was a crash, a hang, a stale answer, or a wrong picture without a word."""

from __future__ import annotations

import io
import json
import os
import pickle
import time
import zipfile
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lib_ipadapter.adapters.variant import identify
from lib_ipadapter.attention.prompt import Timing
from lib_ipadapter.attention.rows import Row
from lib_ipadapter.attention.session import Session
from lib_ipadapter.attention.traced import Content
from lib_ipadapter.attention.traced import identify as identify_rows
from lib_ipadapter.cache import LRU
from lib_ipadapter.encoders import listing
from lib_ipadapter.encoders.catalog import Catalog
from lib_ipadapter.encoders.configs import custom_spec
from lib_ipadapter.encoders.source import EncoderPool, identity
from lib_ipadapter.errors import (
    BrokenAdapter,
    BrokenEncoder,
    EncoderMissing,
    FileError,
    UnitError,
    UnsafeFile,
)
from lib_ipadapter.files.tensors import open_tensors
from lib_ipadapter.prompts.encode import merged
from lib_ipadapter.unit import Unit
from lib_ipadapter.webui.request import requested_units
from tests.synthetic import adapter_tensors
from tests.tiny import UNet, inputs, prompt

U, V = ({"model": name, "images": ["aGk="]} for name in "uv")


# rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("which", [0, 1])
def test_equal_prompts_are_told_apart_by_their_memory(dtype, which):
    """Prompt and negative prompt are both empty: a guidance call (PAG) gives the very tensor of the cond text."""
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 4, 64, 64, generator=generator).to(dtype)
        texts = [torch.ones(1, 77, 8, dtype=dtype), torch.ones(1, 77, 8, dtype=dtype)]
        rows = [Row(0, 0), Row(1, 1)]
        step = Content.of(torch.cat([x, x]), *texts)
        (found,) = identify_rows(rows, step, Content.of(x, texts[which]))
        assert found.tokens == which


# files


def _zip(path, content, **more):
    torch.save(content, path)
    return path


def test_quantised_types_are_refused_and_not_read(tmp_path):
    tensor = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8)
    path = _zip(tmp_path / "q.pt", {"a": torch.zeros(2), "q": tensor})
    with pytest.raises(UnsafeFile):
        open_tensors(path)


@pytest.mark.parametrize("levels", [50, 5000])
def test_a_pickle_that_wraps_itself_hurts_nobody(tmp_path, levels):
    """_rebuild_from_type_v2 of itself, over and over: once a RecursionError that stopped every encoder."""
    head = b"\x80\x02" + b"ctorch._tensor\n_rebuild_from_type_v2\n" * 1
    body = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nctorch\nTensor\n" * levels
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, buffer)
    source = zipfile.ZipFile(io.BytesIO(buffer.getvalue()))
    path, hostile = tmp_path / "deep.pt", head + body + b"t" * levels + b"R" * levels + b"."
    with zipfile.ZipFile(path, "w") as made:
        for entry in source.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            made.writestr(entry.filename, hostile if is_pickle else source.read(entry))
    with pytest.raises(UnsafeFile):
        open_tensors(path)
    with pytest.raises(EncoderMissing):
        Catalog([tmp_path]).find("ViT-H-14")


def test_a_key_that_doubles_itself_takes_no_time(tmp_path):
    """Legacy stream whose list of storages has a tuple of tuples: str() of it has 2^40 parts."""
    deep: object = ()
    for _ in range(40):
        deep = (deep, deep)
    parts = [
        0x1950A86A20F9469CFC6C,
        1001,
        {"little_endian": True, "protocol_version": 1001, "type_sizes": {}},
        {},
        [deep],
    ]
    path = tmp_path / "legacy.pt"
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    began = time.monotonic()
    with pytest.raises(UnsafeFile):
        open_tensors(path)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("key", ["ip_adapter.3999999.to_k_ip.weight", "ip_adapter.\u00b2.to_k_ip.weight",
                                 "ip_adapter." + "9" * 5000 + ".to_k_ip.weight"])  # fmt: skip
def test_absurd_layer_numbers_are_refused_at_once(tmp_path, key):
    tensors = {**adapter_tensors("base"), key: torch.zeros(2, 2)} if _takes_kind() else {key: torch.zeros(2, 2)}
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "a.safetensors")
    shapes = open_tensors(tmp_path / "a.safetensors").shapes
    began = time.monotonic()
    with pytest.raises((BrokenAdapter, FileError)):
        identify(shapes, tmp_path / "a.safetensors")
    assert time.monotonic() - began < 20


def _takes_kind() -> bool:
    try:
        adapter_tensors("base")
    except Exception:
        return False
    return True


# encoders


CONFIG = {"embed_dim": 64, "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "patch_size": 8}}


@pytest.mark.parametrize(
    "change", [{"std": [0, 1, 1]}, {"std": [float("nan")] * 3}, {"mean": [1, 2]}, {"std": [-1, 1, 1]}]
)
def test_mean_and_std_that_cannot_be_are_named(tmp_path, change):
    (tmp_path / "mine.safetensors").write_bytes(b"")
    (tmp_path / "mine.json").write_text(json.dumps({**CONFIG, "preprocess_cfg": change}))
    with pytest.raises(BrokenEncoder, match="mine"):
        custom_spec(tmp_path / "mine.safetensors")


def test_a_config_that_is_a_pipe_does_not_hang_and_a_byte_order_mark_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "pipe.safetensors").write_bytes(b"")
    with pytest.raises(BrokenEncoder):
        custom_spec(tmp_path / "pipe.safetensors")
    (tmp_path / "mine.safetensors").write_bytes(b"")
    (tmp_path / "mine.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(CONFIG).encode())
    assert custom_spec(tmp_path / "mine.safetensors").width == 128


def test_a_folder_dated_ahead_is_not_walked_at_each_use(tmp_path):
    ahead = time.time_ns() + 10**15
    os.utime(tmp_path, ns=(ahead, ahead))
    assert listing.walk(tmp_path).is_current()


def test_an_encoder_that_is_gone_is_named(tmp_path):
    with pytest.raises(FileError, match="gone"):
        identity(tmp_path / "gone.safetensors")


def test_half_precision_is_not_tried_again_for_a_file_where_it_failed(tmp_path, monkeypatch):
    from lib_ipadapter.encoders import source
    from lib_ipadapter.encoders.clip import NotFinite

    path, loads = tmp_path / "x.safetensors", []
    path.write_bytes(b"x")
    pool = EncoderPool()
    monkeypatch.setattr(pool, "get", lambda path, device, dtype: loads.append(dtype) or dtype)

    def run(encoder, picture, feature):
        if encoder == torch.float16:
            raise NotFinite("not finite")
        return "features"

    monkeypatch.setattr(source, "_run", run)
    for _ in range(4):
        assert pool.encode(path, None, None, "cpu", torch.float16) == "features"
    assert loads == [torch.float16, *[torch.float32] * 4]


def test_tiles_far_apart_lie_side_by_side():
    """800 x 1 pixels: 16 tiles with gaps of 53 sides between them made a canvas of 12,800 columns."""
    features = [torch.full((1, 17, 8), float(i)) for i in range(16)]
    far = merged(features, [(i * 53.0, 0.0) for i in range(16)])
    near = merged(features, [(float(i), 0.0) for i in range(16)])
    assert torch.equal(far, near)
    assert merged(features[:2], [(0.0, 0.0), (5e7, 0.0)]).shape == (1, 17, 8)


# requests


@pytest.mark.parametrize("args", [[False, [U]], [None, [U]], [False, U], [[U]], [U]])
def test_units_in_every_accepted_shape_act(args):
    assert [unit["model"] for unit in requested_units(args)] == ["u"]


def test_the_panels_defaults_behind_units_are_no_units():
    assert [unit["model"] for unit in requested_units([U, V, [], "", 1.0, None])] == ["u", "v"]


@pytest.mark.parametrize("args", [[[], U], [U, None, V], [[U], [V]], [U, [V]], [False, None, U], [[U], V]])
def test_units_in_other_shapes_are_refused_and_never_dropped(args):
    with pytest.raises(UnitError, match="args"):
        requested_units(args)


def test_too_many_addresses_are_refused():
    many = {**U, "images": ["http://example.invalid/a.png"] * 17}
    with pytest.raises(UnitError, match="addresses"):
        requested_units([many])


@pytest.mark.parametrize("change", [{"box": [10**400, 0, 1, 1]}, {"model": "\ud800"}])
def test_values_that_no_float_or_encoding_has_are_unit_errors(change):
    with pytest.raises(UnitError):
        Unit.parse({**U, **change})


def test_weights_that_nearly_cancel_are_refused():
    images = [{"image": "aGk=", "weight": weight} for weight in (1, -0.99999)]
    with pytest.raises(UnitError, match="near 0"):
        Unit.parse({"model": "m", "images": images, "combine": "average"})


# caches


def test_an_entry_made_during_a_clear_is_not_kept():
    cache: LRU[int] = LRU(lambda: 8)

    def make() -> int:
        cache.clear()
        return 1

    assert cache.get("k", make) == 1
    assert "k" not in cache


def test_a_large_mask_is_blurred_at_the_pictures_size():
    regions = pytest.importorskip("lib_ipadapter.webui.regions")
    mask = Image.new("L", (4000, 2000))
    mask.paste(255, (0, 0, 2000, 2000))
    region = regions.of_mask(Unit.parse({**U, "mask": "aGk=", "feather": 16}), mask, (200, 100))
    assert region.mask.shape == (100, 200)
    assert 0.4 < float(region.mask[50, 100]) < 0.6


@pytest.mark.parametrize(("start", "acted"), [(0.0, True), (0.9, False)])
def test_a_session_knows_which_prompts_acted(start, acted):
    """A unit that acts in no step, for whatever reason, is named below the pictures."""
    unet = UNet()
    x, text = inputs(rows=2)
    one = replace(prompt(unet), timing=Timing(start=start))
    session = Session([one])
    with session.attached(unet), torch.no_grad():
        for fraction in (0.0, 0.5):
            session.begin_step([0, 1], fraction)
            unet(x, context=text)
            session.end_step()
    assert (id(one) in session.acted) == acted
