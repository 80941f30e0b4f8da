"""What a training keeps on the disk, so that it encodes every picture once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib_ipadapter.encoders.spec import ENCODERS, EncoderSpec
from lib_ipadapter.errors import FileError
from lib_ipadapter.training.cache import Cache
from lib_ipadapter.training.source import BrokenPicture
from lib_ipadapter.training.sources import open_source
from lib_ipadapter.training.stored import Storing
from tests.training_pictures import PREPARE, pictures, take

SHAPES = {"moments": ((2, 3), "float32"), "features": ((4,), "float16")}
ABOUT = {"data": "abc", "encoder": "def"}


def rows(indices: list[int]) -> dict[str, torch.Tensor]:
    moments = [torch.full((2, 3), 0.1) + i for i in indices]
    return {
        "moments": torch.stack(moments),
        "features": torch.stack([torch.full((4,), i / 4) for i in indices]),
    }


def opened(folder: Path, about: Mapping[str, str] = ABOUT, count: int = 6) -> Cache:
    cache = Cache(folder, about, count, SHAPES)
    cache.create()
    return cache


def test_what_is_put_into_the_cache_comes_out(tmp_path):
    cache = opened(tmp_path)
    assert cache.missing() == list(range(6))
    cache.put([4, 1], rows([4, 1]))
    cache.put_broken(2)
    assert cache.missing() == [0, 3, 5]
    for other in (cache, opened(tmp_path), pickle.loads(pickle.dumps(cache))):
        for index in (1, 4):
            found = other.get(index, "key")
            assert torch.equal(found["moments"], rows([index])["moments"][0])
            assert torch.equal(found["features"], rows([index])["features"][0])
            assert all(tensor.dtype == torch.float32 for tensor in found.values())
        with pytest.raises(BrokenPicture, match=r"^key: "):
            other.get(2, "key")
    found["moments"].zero_()
    assert cache.get(4, "key")["moments"].min() > 4, "the caller was given the cache's own memory"


def test_bfloat16_is_kept_bit_for_bit_in_half_the_room(tmp_path):
    cache = Cache(tmp_path, {}, 2, {"tokens": ((3,), "bfloat16")})
    cache.create()
    row = torch.tensor([[1 / 3, -2e30, 7e-20]]).bfloat16()
    cache.put([1], {"tokens": row})
    found = cache.get(1, "")["tokens"]
    assert found.dtype == torch.float32
    assert torch.equal(found, row[0].float())
    assert (cache.folder / "tokens.npy").stat().st_size == 128 + 2 * 3 * 2


def test_a_row_that_was_never_put_is_an_error_and_not_zeros(tmp_path):
    with pytest.raises(FileError, match="key is not in the cache yet"):
        opened(tmp_path).get(0, "key")


def test_a_cache_cut_off_while_it_is_filled_goes_on(tmp_path, monkeypatch):
    cache = opened(tmp_path)
    cache.put([0, 1], rows([0, 1]))

    def killed(indices, state):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "_mark", killed)  # after the data is written, before it is marked
    with pytest.raises(KeyboardInterrupt):
        cache.put([2, 3], rows([2, 3]))
    again = opened(tmp_path)
    assert again.missing() == [2, 3, 4, 5]
    again.put([2, 3, 4, 5], rows([2, 3, 4, 5]))
    assert again.missing() == []
    assert all(torch.equal(again.get(i, "")["moments"], rows([i])["moments"][0]) for i in range(6))


def test_a_cache_whose_making_was_cut_off_is_made_again(tmp_path):
    cache = opened(tmp_path)
    cache.put([0], rows([0]))
    (cache.folder / "about.json").unlink()
    (cache.folder / "features.npy").write_bytes(b"half")
    assert opened(tmp_path).missing() == list(range(6))


def test_trainings_that_begin_at_once_share_a_cache(tmp_path):
    """Each creates it and puts a row of its own: none takes the files of another away."""
    start = threading.Barrier(6)

    def begin(index: int) -> None:
        start.wait()
        opened(tmp_path).put([index], rows([index]))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(begin, range(6)))
    whole = opened(tmp_path)
    assert whole.missing() == []
    assert all(torch.equal(whole.get(i, "")["moments"], rows([i])["moments"][0]) for i in range(6))


def test_another_origin_is_another_cache(tmp_path):
    cache = opened(tmp_path)
    cache.put([0], rows([0]))
    others = [opened(tmp_path, {**ABOUT, "data": "xyz"}), opened(tmp_path, count=7)]
    assert len({cache.folder, *(other.folder for other in others)}) == 3
    assert others[0].missing() == list(range(6))
    assert opened(tmp_path).missing() == list(range(1, 6))
    assert json.loads((cache.folder / "about.json").read_text())["about"] == ABOUT


def test_a_cache_that_does_not_fit_is_refused_with_both_sizes(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_500_000_000))
    with pytest.raises(FileError, match=r"takes 3\.3 GB, and 1\.5 GB are free") as caught:
        opened(tmp_path, count=100_000_000)
    assert "cache_dir" in str(caught.value)
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system reserves no room")
def test_a_disk_that_fills_up_is_told_before_anything_is_encoded(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FileError, match="No space left on device; give another cache_dir"):
        opened(tmp_path)
    monkeypatch.undo()
    assert opened(tmp_path).missing() == list(range(6))


def test_a_cache_file_that_is_gone_or_damaged_is_told(tmp_path):
    cache = opened(tmp_path)
    cache.put([0], rows([0]))
    whole = (cache.folder / "features.npy").read_bytes()
    for content in (b"no array", b"", whole[:-1]):
        (cache.folder / "features.npy").write_bytes(content)
        with pytest.raises(FileError, match=r"features\.npy: cannot be read .*made again"):
            opened(tmp_path).get(0, "key")
    np.save(cache.folder / "done.npy", np.zeros(3, np.uint8))
    with pytest.raises(FileError, match=r"done\.npy: cannot be read .*for 6 rows.*made again"):
        opened(tmp_path).missing()


def test_a_training_from_the_cache_has_the_pictures_of_one_without(tmp_path):
    source = open_source(pictures(tmp_path / "data", 5, broken=(2,)))
    cache = Cache(tmp_path, {}, 5, {"pixels": ((3, 24, 24), "float32"), "reference": ((3, 16, 16), "float32"),
                                    "sizes": ((6,), "float32")})  # fmt: skip
    cache.create()
    for index in range(5):
        try:
            cache.put([index], {name: value[None] for name, value in PREPARE(source.load(index)).items()})
        except BrokenPicture:
            cache.put_broken(index)
    plain, cached = take(source, 5), take(source, 5, cache=cache, workers=1)
    for ours, theirs in zip(chain(*cached), chain(*plain), strict=True):
        assert (ours.key, ours.caption) == (theirs.key, theirs.caption)
        assert [key for key, _ in ours.broken] == [key for key, _ in theirs.broken]
        assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in theirs.tensors)


def test_what_half_precision_cannot_hold_is_refused(tmp_path):
    cache = opened(tmp_path)
    with pytest.raises(FileError, match=r"features go up to 1e\+05, and half precision to 65504; set"):
        cache.put([0], {**rows([0]), "features": torch.full((1, 4), 1e5)})
    assert 0 in cache.missing()


def test_the_config_of_a_custom_encoder_is_part_of_what_features_are_of(tmp_path):
    """Its weights are the same with another mean, and its features are not."""
    plain = EncoderSpec("mine", 32, 8, 64, 2, 1, 48)
    other = replace(plain, mean=(0.5, 0.5, 0.5))
    assert other.beside_weights != plain.beside_weights != ""
    assert replace(plain, name="another name").beside_weights == plain.beside_weights
    assert all(spec.beside_weights == "" for spec in ENCODERS.values()), "caches from before hold"
    assert kept(tmp_path, config=plain.beside_weights) != kept(tmp_path, config=other.beside_weights)
    assert kept(tmp_path, config="") == kept(tmp_path, config="")


def test_the_autoencoder_of_a_folder_counts_by_its_content(tmp_path):
    weights = tmp_path / "model" / "vae" / "diffusion_pytorch_model.bin"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"one")
    first = kept(tmp_path)
    weights.write_bytes(b"two")
    assert kept(tmp_path) != first


def kept(root: Path, config: str = "") -> Path:
    """The folder of a training's latents and features."""
    data = root / "data"
    source = open_source(data if data.is_dir() else pictures(data, 2))
    base = SimpleNamespace(factor=8, moments=lambda pixels: torch.zeros(len(pixels), 8, 2, 2))
    encoding = SimpleNamespace(base=base, nothing=torch.zeros(1, 4), kept="pooled", digest="d", config=config,
                               features=lambda references: torch.zeros(len(references), 4))  # fmt: skip
    alone = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, process_index=0, num_processes=1)
    storing = Storing(source, encoding, alone, SimpleNamespace(), root / "cache", 2, root / "model")
    return storing.pictures(replace(PREPARE, resolution=16), True).folder
