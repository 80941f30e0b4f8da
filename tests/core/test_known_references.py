"""What a known reference costs: nothing is decoded, encoded or projected twice, whichever cache gives it."""

from __future__ import annotations

import base64
import gc
import io
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.encoders.spec import Need
from lib_ipadapter.errors import ImageError
from lib_ipadapter.pictures import picture as picture_module
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.prompts.pipeline import Caches, Pipeline
from lib_ipadapter.prompts.references import NoStore
from lib_ipadapter.prompts.resolve import one_per_picture, resolve
from lib_ipadapter.unit import COMBINES, Unit
from tests.synthetic import adapter_tensors, write_adapter
from tests.tiny_tower import picture

WIDTH, GRID = 48, 16
FEATURE = (GRID + 1) * WIDTH * 4  # bytes


class Source:
    """Penultimate features by the square's pixels, counted."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, square: Image.Image, need: Need) -> Tensor:
        self.encoded += 1
        seed = int.from_bytes(square.tobytes()[:4], "big")
        return torch.randn(1, GRID + 1, WIDTH, generator=torch.Generator().manual_seed(seed))

    def unconditional(self, need: Need) -> Tensor:
        self.encoded += 1
        return torch.zeros(1, GRID + 1, WIDTH)

    def side(self, need: Need) -> int:
        return 8

    def check(self, need: Need) -> None:
        pass

    def identity(self, need: Need) -> str:
        return "counted"

    def named(self, need: Need) -> Need:
        return need


class Jobs:
    """Jobs of one process, with what they cost."""

    def __init__(self, folder: Path, limit: int = 2**28) -> None:
        self.adapter = Adapter.load(
            write_adapter(folder / "a.safetensors", adapter_tensors("plus", feature_width=WIDTH))
        )
        self.source, self.pictures, self.caches = Source(), Pictures(), Caches(lambda: limit)
        self.projected = 0
        original = self.adapter.tokens

        def tokens(features: Any) -> Tensor:
            self.projected += 1
            return original(features)

        self.adapter.tokens = tokens  # type: ignore[method-assign]

    def run(self, images: list[Any], **fields: Any) -> Tensor:
        """The tokens of one job."""
        unit = Unit.parse({"model": "m", "images": images, **fields})
        resolved = resolve(unit, NoStore(), self.pictures)
        return Pipeline(self.source, self.caches).prompt(resolved, self.adapter).tokens

    @property
    def cost(self) -> tuple[int, int, int]:
        return self.pictures.decoded, self.source.encoded, self.projected


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def text(seed: int) -> str:
    buffer = io.BytesIO()
    picture(seed, (40, 30)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def file(folder: Path, seed: int) -> Path:
    path = folder / f"{seed}.png"
    picture(seed, (40, 30)).save(path)
    return path


@pytest.mark.parametrize("fields", [
    {}, {"fit": "tiles"}, {"sharpen": 0.5}, {"box": "0, 0, 0.5, 1"}, {"noise": 0.5}, {"negative": [text(9)]},
    {"focus": text(8)}, *({"combine": how} for how in COMBINES),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["texts", "files"])
def test_a_second_job_costs_nothing(jobs: Jobs, tmp_path: Path, kind: str, fields: dict[str, Any]) -> None:
    references = [text(i) if kind == "texts" else file(tmp_path, i) for i in range(4)]
    first = jobs.run(references, **fields)
    decoded, encoded, projected = cost = jobs.cost
    assert decoded == 4 + len(set(fields) & {"negative", "focus"}), "each picture once"
    assert encoded >= 4
    assert projected >= 2
    assert torch.equal(jobs.run(references, **fields), first)
    assert jobs.cost == cost


def test_equal_pictures_from_two_sources_are_encoded_once(jobs: Jobs, tmp_path: Path) -> None:
    by_text = jobs.run([text(1)])
    encoded, projected = jobs.source.encoded, jobs.projected
    assert torch.equal(jobs.run([file(tmp_path, 1)]), by_text)
    assert torch.equal(jobs.run([picture(1, (40, 30))]), by_text)
    assert (jobs.source.encoded, jobs.projected) == (encoded, projected)


def test_sixty_four_references_cycle(jobs: Jobs) -> None:
    references = [text(i) for i in range(64)]
    jobs.run(references)
    cost = jobs.cost
    for _ in range(2):
        jobs.run(references)
    assert jobs.cost == cost


@pytest.mark.parametrize("limit", [0, 3 * FEATURE, 8 * FEATURE, 2**28])
def test_the_tokens_are_the_same_whatever_the_caches_keep(tmp_path: Path, limit: int) -> None:
    wanted = Jobs(tmp_path).run([text(i) for i in range(4)])
    small = Jobs(tmp_path, limit)
    for _ in range(3):
        assert torch.equal(small.run([text(i) for i in range(4)]), wanted)
    assert small.caches.features.size + small.caches.tokens.size <= limit


def test_a_changed_file_is_another_picture(jobs: Jobs, tmp_path: Path) -> None:
    path = file(tmp_path, 1)
    first = jobs.run([path])
    picture(2, (40, 30)).save(path)
    os.utime(path, ns=(1, 1))
    assert not torch.equal(jobs.run([path]), first)


def test_tokens_alone_are_enough(jobs: Jobs) -> None:
    first, cost = jobs.run([text(1)]), jobs.cost
    jobs.caches.features.clear()
    assert torch.equal(jobs.run([text(1)]), first)
    assert jobs.cost == cost


def test_no_decoded_picture_is_kept(jobs: Jobs) -> None:
    unit = Unit.parse({"model": "m", "images": [text(i) for i in range(8)]})
    resolved = resolve(unit, NoStore(), jobs.pictures)
    Pipeline(jobs.source, jobs.caches).prompt(resolved, jobs.adapter)
    assert all(reference._image is None for reference in resolved.references)  # type: ignore[union-attr]
    assert jobs.pictures.decoded == 8


def test_in_turn_they_are_known_too(jobs: Jobs) -> None:
    references = [text(i) for i in range(5)]
    jobs.run(references)
    cost = jobs.cost
    unit = Unit.parse({"model": "m", "images": references, "distribute": "one per picture"})
    for one in one_per_picture(unit, range(5), NoStore()):
        Pipeline(jobs.source, jobs.caches).prompt(resolve(one, NoStore(), jobs.pictures), jobs.adapter)
    assert jobs.cost == cost


def test_equal_keys_mean_equal_tokens(jobs: Jobs) -> None:
    def prompt(images: list[Any], **fields: Any) -> Any:
        unit = Unit.parse({"model": "m", "images": images, **fields})
        return Pipeline(jobs.source, jobs.caches).prompt(resolve(unit, NoStore(), jobs.pictures), jobs.adapter)

    a, b = {"image": text(1), "weight": 1.0}, {"image": text(2), "weight": 0.5}
    same = [prompt([a, b]), prompt([a, b], weight=0.3, start=0.5)]
    assert same[0].key == same[1].key
    others = [prompt([b, a]), prompt([a]), prompt([a, b], combine="average"), prompt([a, b], noise=0.5),
              prompt([a, {**b, "weight": 0.6}]), prompt([a, b], fit="pad"),
              prompt([a, b], negative=[text(3)])]  # fmt: skip
    keys = [same[0].key, *(other.key for other in others)]
    assert len(set(keys)) == len(keys)


def test_a_broken_picture_is_named_and_leaves_the_others(jobs: Jobs) -> None:
    with pytest.raises(ImageError) as failure:
        jobs.run([text(1), "aGVsbG8="])
    assert failure.value.detail["field"] == "images[1]"
    jobs.run([text(1)])


def test_urls_need_a_fetcher(jobs: Jobs) -> None:
    with pytest.raises(ImageError, match="address"):
        jobs.run(["https://example.com/a.png"])
    asked: list[str] = []
    jobs.pictures.fetch = lambda url: (asked.append(url), base64.b64decode(text(1)))[1]
    assert torch.equal(jobs.run(["https://example.com/a.png"]), jobs.run([text(1)]))
    assert asked == ["https://example.com/a.png"]


def test_a_text_is_hashed_once_for_the_tiles_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it is one of the last, which take a bounded number of bytes."""
    hashed: list[int] = []
    plain = picture_module._digest
    monkeypatch.setattr(picture_module, "_digest", lambda data: hashed.append(len(data)) or plain(data))
    monkeypatch.setattr(picture_module, "_MAX_TEXTS", 10_000)
    pictures, texts = Pictures(), ["a" * 4000, "b" * 4000, "c" * 4000]
    sources = [pictures.reference(text, "images").source for text in texts[:2] * 3]
    assert hashed == [4000, 4000]
    assert sources[:2] == sources[2:4] == sources[4:]
    assert sources[0] != sources[1]
    pictures.reference(texts[2], "images")
    assert pictures.reference(texts[0], "images").source == sources[0]
    assert hashed == [4000] * 4  # the first had to go
    pictures.reference("d" * 20_000, "images")
    assert pictures._digests.size <= 10_000


def test_known_texts_take_the_memory_that_is_stated_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide characters and as many short ones as well; none where nothing may be kept."""
    limit = [1 << 20]
    pictures = Pictures(memory=lambda: limit[0])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(8):
            pictures.digest(chr(0x1F600 + number) * 200_000)
        for number in range(5000):
            pictures.digest(f"{number:020}")
        assert tracemalloc.get_traced_memory()[0] - before < 1.5 * limit[0]
        pictures.forget()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 0.1 * limit[0]
    finally:
        tracemalloc.stop()
    limit[0] = 0
    pictures.digest("a" * 4000)
    assert pictures._digests.size == 0
