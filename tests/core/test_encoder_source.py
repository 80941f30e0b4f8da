"""Finding an encoder's file, keeping one in memory, and what was encoded."""

from __future__ import annotations

import gc
import io
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter.encoders import (
    EncoderPool,
    EncoderSource,
    ImageEncoder,
    find_encoder,
)
from lib_ipadapter.encoders import recognise as recognise_module
from lib_ipadapter.encoders.spec import Need
from lib_ipadapter.errors import EncoderMissing
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.prompts.pipeline import Caches, Pipeline
from lib_ipadapter.prompts.references import NoStore
from lib_ipadapter.prompts.resolve import resolve
from lib_ipadapter.unit import Unit
from tests.tiny_tower import TINY, as_hugging_face, picture, tiny_weights, without

pytestmark = pytest.mark.usefixtures("tiny_registered")


# finding


def test_found_under_any_name_in_any_depth(tmp_path: Path) -> None:
    deep = tmp_path / "second" / "faceid v2"
    deep.mkdir(parents=True)
    save_file({"a": torch.ones(1)}, tmp_path / "second" / "lora.safetensors")
    save_file(as_hugging_face(tiny_weights()), deep / "renamed.safetensors")
    torch.save(tiny_weights(), tmp_path / "second" / "a.bin")
    (tmp_path / "first").mkdir()
    folders = [tmp_path / "first", tmp_path / "missing", tmp_path / "second"]
    assert find_encoder("tiny", folders) == deep / "renamed.safetensors"  # before pickles
    assert find_encoder("tiny", [tmp_path / "second" / "a.bin"]) == tmp_path / "second" / "a.bin"
    save_file(tiny_weights(), tmp_path / "first" / "x.safetensors")
    assert find_encoder("tiny", folders) == tmp_path / "first" / "x.safetensors"


def test_missing_names_encoder_folders_files_and_download(tmp_path: Path) -> None:
    """F18: what to do stands before what was seen where, for encoders without a source too."""
    save_file(tiny_weights(), tmp_path / "small.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "lora.safetensors")
    (tmp_path / "cut.bin").write_bytes(b"PK")
    (tmp_path / "ViT-H-14.safetensors.part").write_bytes(b"")
    with pytest.raises(EncoderMissing) as failure:
        find_encoder("ViT-H-14", [tmp_path, tmp_path / "nowhere"])
    message = str(failure.value)
    for part in (
        "ViT-H-14 was not found", str(tmp_path), str(tmp_path / "nowhere"), "small.safetensors (tiny)",
        "lora.safetensors (no CLIP vision tower)", "cut.bin (refused: its zip archive is damaged", "h94/IP-Adapter",
        "models/image_encoder/model.safetensors",
    ):  # fmt: skip
        assert part in message
    assert message.index("Download it from huggingface.co") < message.index("Searched: ") < message.index("lora.")
    assert ".part" not in message
    assert failure.value.detail["encoder"] == "ViT-H-14"
    with pytest.raises(
        EncoderMissing, match=r"tiny was not found\. Put weights of .* into .*nowhere under any name\. Se"
    ):
        find_encoder("tiny", [tmp_path / "nowhere"])
    with pytest.raises(EncoderMissing, match="no weight file is there"):
        find_encoder("ViT-bigG-14", [tmp_path / "nowhere"])
    with pytest.raises(EncoderMissing, match="no encoder named 'ViT-Z'"):
        find_encoder("ViT-Z", [tmp_path])


def test_an_incomplete_file_is_not_found_but_named(tmp_path: Path) -> None:
    save_file(without(tiny_weights(), "ln_post.bias"), tmp_path / "a.safetensors")
    with pytest.raises(EncoderMissing, match=r"a\.safetensors \(not a whole tiny .*missing ln_post\.bias"):
        find_encoder("tiny", [tmp_path])


def test_each_version_of_a_file_is_looked_into_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    opened = recognise_module.opened
    monkeypatch.setattr(recognise_module, "opened", lambda path: (looked.append(path), opened(path))[1])
    path = tmp_path / "a.bin"
    torch.save({"a": torch.ones(1)}, path)
    for _ in range(3):
        with pytest.raises(EncoderMissing):
            find_encoder("tiny", [tmp_path])
    assert looked == [path]
    torch.save(tiny_weights(), path)
    assert find_encoder("tiny", [tmp_path]) == path
    assert looked == [path, path]


def test_links_in_circles_end(tmp_path: Path, tiny_file: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "again").symlink_to(tmp_path / "models", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    tiny_file.rename(tmp_path / "elsewhere" / "t.safetensors")
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert find_encoder("tiny", [tmp_path / "models"]).name == "t.safetensors"


# pool, cache, source


def wants(feature: str) -> Need:
    return Need(feature, TINY.embed_dim if feature == "pooled" else TINY.width, "tiny")  # type: ignore[arg-type]


def feature(pipeline: Pipeline, shown: Image.Image, name: str = "pooled", fit: str = "crop") -> Tensor:
    """Of one picture, as an adapter gets it."""
    unit = Unit.parse({"model": "m", "images": [shown], "fit": fit})
    features = pipeline.features(resolve(unit, NoStore(), Pictures()), [wants(name)])
    return features.references[0]()[name]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the encoder is asked to encode; None is the unconditional."""
    calls: list[Any] = []
    for name in ("encode", "unconditional"):
        original = getattr(ImageEncoder, name)

        def spying(self: ImageEncoder, *args: Any, original: Any = original) -> Any:
            calls.append(args)
            return original(self, *args)

        monkeypatch.setattr(ImageEncoder, name, spying)
    return calls


def test_the_same_reference_is_encoded_once(tiny_file: Path, encoded: list[Any]) -> None:
    pipeline = Pipeline(EncoderSource([tiny_file.parent]))
    first = feature(pipeline, picture(1, (50, 40)), "penultimate")
    assert torch.equal(first, feature(pipeline, picture(1, (50, 40)), "penultimate"))
    assert len(encoded) == 1
    feature(pipeline, picture(1, (50, 40)), "penultimate", "pad")
    feature(pipeline, picture(1, (50, 40)))
    feature(pipeline, picture(2, (50, 40)))
    assert len(encoded) == 4


def test_another_file_under_the_same_name_is_another_encoder(tiny_file: Path) -> None:
    caches = Caches()
    first = feature(Pipeline(EncoderSource(lambda: [tiny_file]), caches), picture())
    tiny_file.unlink()
    save_file({**tiny_weights(seed=1)}, tiny_file)
    second = feature(Pipeline(EncoderSource(lambda: [tiny_file]), caches), picture())
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("name", ["pooled", "penultimate"])
def test_another_dtype_is_another_feature(tiny_file: Path, name: str) -> None:
    caches = Caches()
    full, half = (
        feature(Pipeline(EncoderSource([tiny_file], dtype=dtype), caches), picture(), name)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert not torch.equal(full, half)
    torch.testing.assert_close(full, half, rtol=0.1, atol=0.5)


def test_unconditional_of_a_source(tiny_file: Path, encoded: list[Any]) -> None:
    pipeline = Pipeline(EncoderSource([tiny_file]))

    def unconditional(name: str) -> Tensor:
        unit = Unit.parse({"model": "m", "images": [picture()]})
        features = pipeline.features(resolve(unit, NoStore(), Pictures()), [wants(name)])
        return features.unconditional()[name]

    assert torch.equal(unconditional("pooled"), torch.zeros(1, TINY.embed_dim))
    assert pipeline.source.pool.loaded is None, "zeros need no encoder"
    found = [unconditional("penultimate") for _ in range(2)]
    assert len(encoded) == 1
    assert torch.equal(found[0], ImageEncoder.load(tiny_file).unconditional().penultimate)


def test_an_adapter_of_unknown_width(tiny_file: Path) -> None:
    with pytest.raises(EncoderMissing, match="pooled features of width 333"):
        EncoderSource([tiny_file]).encode(picture(), Need("pooled", 333))


def test_the_pool_keeps_one_encoder(tiny_file: Path, tmp_path: Path) -> None:
    save_file(tiny_weights(seed=1), tmp_path / "b.safetensors")
    pool = EncoderPool()
    first = pool.get(tiny_file)
    assert pool.get(tiny_file) is first
    assert pool.get(tmp_path / "b.safetensors") is not first
    assert pool.loaded is not None
    assert pool.loaded.path.name == "b.safetensors"
    pool.offload()
    assert pool.loaded.device.type == "cpu"
    pool.release()
    assert pool.loaded is None


def test_threads_share_a_cache(tiny_file: Path, encoded: list[Any]) -> None:
    pipeline = Pipeline(EncoderSource([tiny_file]))
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(feature(pipeline, picture()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(encoded) == 1


def test_memory_stays_flat_over_many_references(tiny_file: Path) -> None:
    """After the cache is full, each further reference leaves as many tensors as it found."""
    pipeline = Pipeline(EncoderSource([tiny_file]), Caches(lambda: 6 * TINY.tokens * TINY.width * 4))

    def tensors_after(count: int) -> int:
        for seed in range(count):
            feature(pipeline, picture(seed, (40, 30)), "penultimate")
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    assert tensors_after(8) == tensors_after(30)


def test_a_failure_leaves_nothing_in_the_cache(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(EncoderSource([tiny_file]))
    with monkeypatch.context() as patch:
        patch.setattr(ImageEncoder, "encode", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            feature(pipeline, picture())
    assert feature(pipeline, picture()).shape == (1, TINY.embed_dim)


def test_buffers_of_the_file_are_not_needed_after_pickles(tmp_path: Path) -> None:
    """A pickle read through mmap still encodes after the file's name is gone."""
    buffer = io.BytesIO()
    torch.save(tiny_weights(), buffer)
    path = tmp_path / "a.pth"
    path.write_bytes(buffer.getvalue())
    encoder = ImageEncoder.load(path)
    wanted = encoder.encode(picture()).pooled
    path.unlink()
    assert torch.equal(encoder.encode(picture()).pooled, wanted)
