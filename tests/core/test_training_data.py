"""The training's data: sources, positions, preparation and the cache."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
from collections.abc import Mapping
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from lib_ipadapter import images
from lib_ipadapter.encoders.clip import ImageEncoder
from lib_ipadapter.encoders.spec import EncoderSpec
from lib_ipadapter.errors import DataError, FileError
from lib_ipadapter.training import data
from lib_ipadapter.training.cache import Cache
from lib_ipadapter.training.data import Positions, PositionSampler, Preparation, Sample, draws, loader
from lib_ipadapter.training.source import BrokenPicture, Entry, FolderSource, Source, open_source

SPEC = EncoderSpec("tiny", 16, 8, 32, 1, 1, 24)
PREPARE = Preparation(24, SPEC)
RED, BLUE = (200, 0, 0), (0, 0, 200)


def encoded(colour: tuple[int, int, int] = RED, size: tuple[int, int] = (30, 20), kind: str = "PNG") -> bytes:
    held = io.BytesIO()
    Image.new("RGB", size, colour).save(held, kind)
    return held.getvalue()


def noise(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3))
    return Image.fromarray(pixels.astype(np.uint8))


def write(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def tar(path: Path, files: Mapping[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def pictures(root: Path, count: int, broken: tuple[int, ...] = ()) -> Path:
    """A folder of different pictures; of the broken ones, even numbers are text and odd ones are cut short."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise(i).save(root / f"{i:02}.jpg", "JPEG")
        (root / f"{i:02}.txt").write_text(f"picture {i}", encoding="utf-8")
        if i in broken:
            whole = (root / f"{i:02}.jpg").read_bytes()
            (root / f"{i:02}.jpg").write_bytes(whole[: len(whole) // 2] if i % 2 else b"hello, I am text")
    return root


def take(source: Source, steps: int, start: int = 0, world: int = 1, rank: int = 0, batch: int = 2,
         accumulate: int = 1, workers: int = 0, seed: int = 3, cache: Cache | None = None) -> list[list[Sample]]:  # fmt: skip
    sampler = PositionSampler(start, world, rank, batch, accumulate)
    batches = loader(Positions(source, PREPARE, seed, cache), sampler, workers, 2)
    return list(islice(batches, steps * accumulate))


def same(ours: list[list[Sample]], theirs: list[list[Sample]]) -> bool:
    a, b = ([sample for batch in batches for sample in batch] for batches in (ours, theirs))
    return len(a) == len(b) and all(
        (x.position, x.key, x.caption, x.broken) == (y.position, y.key, y.caption, y.broken)
        and x.tensors.keys() == y.tensors.keys()
        and all(torch.equal(x.tensors[name], y.tensors[name]) for name in x.tensors)
        for x, y in zip(a, b)
    )


# sources: folders


def test_a_folder_is_read_in_depth_sorted_and_with_endings_of_any_case(tmp_path):
    names = ("b/2.PNG", "a.jpg", "b/1.webp", "c.JPEG", "d.bmp")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise(0).save(tmp_path / name)
    write(tmp_path, {"notes.md": "no picture", "b/2.txt": "  two\n", "a.txt": "ä\n"})
    source = open_source(tmp_path)
    assert [source.key(i) for i in range(len(source))] == sorted(names)
    assert [source.caption(i) for i in range(len(source))] == ["ä", "", "two", "", ""]
    item = source.load(2)
    assert (item.key, item.caption, item.picture.mode, item.picture.size) == (
        "b/2.PNG",
        "two",
        "RGB",
        (40, 30),
    )
    assert item.reference is item.picture


def test_a_caption_may_begin_with_the_mark_that_windows_editors_write(tmp_path):
    write(tmp_path, {"a.png": encoded(), "a.txt": b"\xef\xbb\xbfa cat"})
    assert open_source(tmp_path).caption(0) == "a cat"
    assert (
        open_source(tar(tmp_path / "a.tar", {"a.png": encoded(), "a.txt": b"\xef\xbb\xbfa cat"})).caption(0)
        == "a cat"
    )


def test_a_caption_that_is_no_text_breaks_its_own_picture_only(tmp_path):
    write(tmp_path, {"a.png": encoded(), "a.txt": b"\xff\xfe\xff", "b.png": encoded(), "b.txt": "b"})
    source = open_source(tmp_path)
    with pytest.raises(BrokenPicture, match=r"a\.png: its caption a\.txt"):
        source.load(0)
    assert source.load(1).caption == "b"


@pytest.mark.parametrize("name", ["a.ref.png", "a.REF.PNG", "a.ref.JPG"])
def test_a_second_picture_beside_is_the_reference(tmp_path, name):
    kind = "JPEG" if name.lower().endswith("jpg") else "PNG"
    write(tmp_path, {"a.PNG": encoded(RED), name: encoded(BLUE, kind=kind), "b.png": encoded(RED)})
    source = open_source(tmp_path)
    assert len(source) == 2
    assert source.load(0).picture.getpixel((0, 0)) == RED
    assert source.load(0).reference.getpixel((0, 0))[2] > 190
    assert source.load(1).reference.getpixel((0, 0)) == RED


def test_metadata_names_picture_caption_and_reference(tmp_path):
    rows = [
        {"file_name": "in/a.png", "text": "one\u2028line", "reference": "r.png"},
        {"file_name": "b.png", "caption": "two", "other": 1},
        {"file_name": "b.png"},
        {"file_name": "b.png", "text": None, "caption": None, "reference": None},
    ]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n"
    files = {
        "in/a.png": encoded(RED),
        "b.png": encoded(RED),
        "r.png": encoded(BLUE),
        "unnamed.png": encoded(),
    }
    source = open_source(write(tmp_path, {**files, "metadata.jsonl": lines}))
    assert [source.caption(i) for i in range(len(source))] == ["one\u2028line", "two", "", ""]
    assert source.load(0).reference.getpixel((0, 0)) == BLUE
    assert source.load(0).picture.getpixel((0, 0)) == RED
    assert source.load(3).reference.getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    "path", ["../a.png", "/etc/a.png", "in/../../a.png", "C:/a.png", "..\\a.png"]
)  # fmt: skip
@pytest.mark.parametrize("field", ["file_name", "reference"])
def test_metadata_that_leaves_the_folder_is_refused_with_its_line(tmp_path, path, field):
    rows = [{"file_name": "b.png", "text": ""}, {"file_name": "b.png", field: path}]
    write(tmp_path, {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    with pytest.raises(DataError, match=r"metadata\.jsonl: line 2: .* leaves the folder"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"text": "x"}', '{"file_name": 3}', '{"file_name": "a.png", "text": 3}',
             '{"file_name": "a.png", "reference": 3}'],
)  # fmt: skip
def test_a_bad_line_of_metadata_is_told_by_its_number(tmp_path, line):
    write(tmp_path, {"metadata.jsonl": '{"file_name": "a.png", "text": "x"}\n\n' + line})
    with pytest.raises(DataError, match=r"metadata\.jsonl: line 3: expected an object"):
        open_source(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_metadata_without_a_line_or_not_of_text_is_refused(tmp_path, content):
    write(tmp_path, {"metadata.jsonl": content, "a.png": encoded()})
    with pytest.raises(DataError, match=r"metadata\.jsonl: "):
        open_source(tmp_path)


def test_what_holds_no_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_source(tmp_path / "absent")
    with pytest.raises(DataError, match="no pictures"):
        open_source(tmp_path)
    with pytest.raises(DataError, match="no pictures"):
        open_source(write(tmp_path / "texts", {"a.txt": "x"}))
    with pytest.raises(DataError, match="no file matches"):
        open_source(str(tmp_path / "set-{0..3}-*.tar"))
    with pytest.raises(DataError, match="the lower number first"):
        open_source(str(tmp_path / "set-{3..0}.tar"))
    with pytest.raises(DataError, match=r"absent\.tar: cannot be read"):
        open_source(tmp_path / "absent.tar")


def test_the_fingerprint_changes_with_names_sizes_times_and_references(tmp_path):
    write(tmp_path, {"a.png": encoded(), "b.png": encoded()})
    found = [open_source(tmp_path).fingerprint]
    assert open_source(tmp_path).fingerprint == found[0]
    os.utime(tmp_path / "a.png", ns=(1, 1))
    found.append(open_source(tmp_path).fingerprint)
    write(tmp_path, {"a.ref.png": encoded()})
    found.append(open_source(tmp_path).fingerprint)
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    found.append(open_source(tmp_path).fingerprint)
    assert len(set(found)) == 4


# sources: shards

SHARD = {
    "x/0001.jpg": encoded(RED, kind="JPEG"), "x/0001.txt": " one ", "x/0001.json": '{"caption": "not this"}',
    "x/0002.png": encoded(RED), "x/0002.ref.png": encoded(BLUE), "x/0002.json": '{"caption": "two"}',
    "x/0003.png": encoded(RED), "x/0003.json": '{"text": "three"}',
    "x/0004.png": encoded(RED), "x/0005.txt": "no picture", "x/0006.PNG": encoded(BLUE), "x/0006.cls": "3",
    "x/0007.png": encoded(RED), "x/0007.json": '{"caption": null, "text": null}',
}  # fmt: skip


def test_a_shards_members_of_one_name_are_one_sample(tmp_path):
    source = open_source(tar(tmp_path / "a.tar", SHARD))
    assert [source.key(i) for i in range(len(source))] == [f"a.tar/x/000{n}" for n in (1, 2, 3, 4, 6, 7)]
    items = [source.load(i) for i in range(len(source))]
    assert [item.caption for item in items] == ["one", "two", "three", "", "", ""]
    assert items[1].picture.getpixel((0, 0)) == RED
    assert items[1].reference.getpixel((0, 0)) == BLUE
    assert items[4].picture.getpixel((0, 0)) == BLUE


@pytest.mark.parametrize("content", ['{"caption": 3}', "[1]", "{", b"\xff"])
def test_a_shards_caption_that_cannot_be_read_breaks_its_sample(tmp_path, content):
    source = open_source(tar(tmp_path / "a.tar", {"1.png": encoded(), "1.json": content}))
    with pytest.raises(BrokenPicture, match=r"a\.tar/1: its caption"):
        source.load(0)


@pytest.mark.parametrize("pattern", ["", "s-{000..002}.tar", "s-*.tar", "s-00[012].tar"])
def test_shards_are_found_by_folder_braces_and_stars(tmp_path, pattern):
    for n in range(3):
        tar(tmp_path / f"s-{n:03}.tar", {f"{i}.png": encoded() for i in range(n + 1)})
    source = open_source(str(tmp_path / pattern))
    assert [source.key(i) for i in range(len(source))] == [
        f"s-{n:03}.tar/{i}" for n in range(3) for i in range(n + 1)
    ]


def test_a_shard_that_the_braces_name_and_that_is_absent_is_told(tmp_path):
    tar(tmp_path / "s-0.tar", {"1.png": encoded()})
    with pytest.raises(DataError, match=r"s-1\.tar"):
        open_source(str(tmp_path / "s-{0..1}.tar"))


def test_a_shard_cut_off_anywhere_is_refused(tmp_path):
    whole = tar(tmp_path / "a.tar", SHARD).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        last = archive.getmembers()[-1]
    for cut in (0, 100, last.offset, last.offset + 200, last.offset_data, last.offset_data + 5):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut\.tar: .*make or download it again"):
            open_source(tmp_path / "cut.tar")


def test_a_shard_that_is_damaged_in_the_middle_is_refused(tmp_path):
    path = tar(tmp_path / "a.tar", SHARD)
    with tarfile.open(path) as archive:
        middle = archive.getmembers()[5].offset
    content = bytearray(path.read_bytes())
    content[middle : middle + 100] = b"\xff" * 100
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"damaged at byte {middle}"):
        open_source(path)


def test_a_shard_of_another_kind_and_one_without_pictures_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.add(__file__, "1.png")
    with pytest.raises(DataError, match="cannot be read as a tar file"):
        open_source(tmp_path / "a.tar")
    with pytest.raises(DataError, match="no pictures in the shards"):
        open_source(tar(tmp_path / "b.tar", {"1.txt": "x"}))


def test_an_epoch_reads_one_shard_after_the_other_and_keeps_one_open(tmp_path):
    for n in range(4):
        tar(tmp_path / f"{n}.tar", {f"{i}.png": encoded() for i in range(5)})
    source = open_source(tmp_path)
    epochs = [source.order(epoch, 1).tolist() for epoch in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(20))
        shards = [index // 5 for index in order]
        assert sum(a != b for a, b in pairwise(shards)) == 3
    assert len({tuple(order) for order in epochs}) == 3
    assert len({tuple(index // 5 for index in order) for order in epochs}) > 1
    for index in epochs[0]:
        source.load(index)
        assert len(source._files) == 1


def test_shards_go_into_another_process_by_pickling(tmp_path):
    source = open_source(tar(tmp_path / "a.tar", SHARD))
    source.load(0)
    copy = pickle.loads(pickle.dumps(source))
    assert not copy._files
    assert copy.load(1).caption == "two"
    assert copy.fingerprint == source.fingerprint


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork")
def test_a_forked_worker_does_not_move_the_place_where_its_parent_reads(tmp_path):
    files = {}
    for i in range(3):
        held = io.BytesIO()
        noise(i, (200, 200)).save(held, "PNG")
        files[f"{i}.png"] = held.getvalue()
    source = open_source(tar(tmp_path / "a.tar", files))
    source.load(0)
    (file,) = source._files.values()
    before = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    child = multiprocessing.get_context("fork").Process(target=source.load, args=(2,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == before


# positions


def entries(count: int) -> FolderSource:
    return FolderSource(Path(), [Entry(str(i), str(i), "", "") for i in range(count)])


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 300), epoch=st.integers(0, 10**6), seed=st.integers(0, 2**63 - 1))
def test_an_order_is_a_permutation_that_seed_and_epoch_decide(count, epoch, seed):
    source = entries(count)
    order = source.order(epoch, seed)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, source.order(epoch, seed))
    if count > 30:
        assert not np.array_equal(order, source.order(epoch + 1, seed))
        assert not np.array_equal(order, source.order(epoch, (seed + 1) % 2**63))


def positions_of(steps: range, world: int, rank: int, batch: int, accumulate: int) -> list[list[int]]:
    """What a rank sees, one list an optimizer step."""
    share = batch * accumulate
    sampler = PositionSampler(steps.start, world, rank, batch, accumulate)
    flat = list(islice(sampler, len(steps) * share))
    return [flat[i : i + share] for i in range(0, len(flat), share)]


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 10**6),
    world=st.integers(1, 5),
    batch=st.integers(1, 5),
    accumulate=st.integers(1, 4),
)
def test_processes_together_see_what_one_with_their_batches_together_sees(start, world, batch, accumulate):
    steps = range(start, start + 3)
    ranks = [positions_of(steps, world, rank, batch, accumulate) for rank in range(world)]
    alone = positions_of(steps, 1, 0, world * batch, accumulate)
    size = world * batch * accumulate
    for at, step in enumerate(steps):
        together = [position for rank in ranks for position in rank[at]]
        assert len(together) == len(set(together))
        assert sorted(together) == alone[at] == list(range(step * size, (step + 1) * size))
    # micro step by micro step as well: gradients are added up in the same order
    for micro in range(accumulate):
        pieces = [rank[0][micro * batch : (micro + 1) * batch] for rank in ranks]
        assert list(chain(*pieces)) == alone[0][micro * world * batch : (micro + 1) * world * batch]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_processes_read_the_pictures_of_one_with_twice_the_batch(tmp_path, accumulate):
    source = open_source(pictures(tmp_path, 7, broken=(2,)))
    alone = take(source, 3, batch=4, accumulate=accumulate)
    ranks = [take(source, 3, world=2, rank=rank, batch=2, accumulate=accumulate) for rank in range(2)]
    assert same([a + b for a, b in zip(*ranks)], alone)


def test_every_picture_comes_once_an_epoch(tmp_path):
    source = open_source(pictures(tmp_path, 6))
    epochs = take(source, 4, batch=6)
    assert all({sample.key for sample in epoch} == {f"{i:02}.jpg" for i in range(6)} for epoch in epochs)
    assert len({tuple(sample.key for sample in epoch) for epoch in epochs}) > 1


def test_workers_change_nothing(tmp_path):
    source = open_source(pictures(tmp_path, 7, broken=(3,)))
    state = torch.random.get_rng_state()
    alone = take(source, 6, workers=0)
    assert same(take(source, 6, workers=2), alone)
    assert torch.equal(torch.random.get_rng_state(), state), "the loader drew from the global randomness"


def test_a_start_in_the_middle_of_an_epoch_goes_on_exactly(tmp_path):
    source = open_source(pictures(tmp_path, 7, broken=(3,)))
    whole = take(source, 8, accumulate=2)
    for start in (1, 3, 4):
        assert same(take(source, 8 - start, start=start, accumulate=2), whole[2 * start :])


def test_draws_are_each_positions_own():
    def first(seed: int, position: int) -> int:
        return int(torch.randint(2**62, (1,), generator=draws(seed, position)))

    found = {(s, p): first(s, p) for s in range(20) for p in range(20)}
    assert len(set(found.values())) == 400, "seed and position are added up somewhere"
    assert first(3, 7) == found[3, 7]
    first(2**63 - 1, 10**12)


# broken pictures


def test_a_broken_picture_is_replaced_by_the_next_of_its_epoch(tmp_path):
    source = open_source(pictures(tmp_path, 6, broken=(1, 4)))
    positions = Positions(source, PREPARE, 3)
    for position in range(12):
        epoch, at = divmod(position, 6)
        order = source.order(epoch, 3).tolist()
        following = [order[(at + i) % 6] for i in range(6)]
        good = next(i for i, index in enumerate(following) if index not in (1, 4))
        sample = positions[position]
        assert (sample.position, sample.key) == (position, f"{following[good]:02}.jpg")
        assert sample.caption == f"picture {following[good]}"
        assert [key for key, _ in sample.broken] == [f"{index:02}.jpg" for index in following[:good]]
    reasons = dict(pair for p in range(12) for pair in positions[p].broken)
    assert "cut short" in reasons["01.jpg"]
    assert "no picture that can be read" in reasons["04.jpg"]


def test_a_broken_reference_breaks_its_sample(tmp_path):
    source = open_source(write(tmp_path, {"a.png": encoded(), "a.ref.png": b"text"}))
    with pytest.raises(BrokenPicture, match=r"^a\.png: "):
        source.load(0)


def test_a_broken_picture_keeps_its_name_and_reason_between_processes():
    copy = pickle.loads(pickle.dumps(BrokenPicture("a", "why")))
    assert (copy.key, copy.reason) == ("a", "why")


@pytest.mark.parametrize("workers", [0, 1])
def test_when_no_picture_can_be_read_the_error_says_so_from_a_worker_too(tmp_path, workers):
    source = open_source(pictures(tmp_path, 2, broken=(0, 1)))
    with pytest.raises(DataError, match="not one picture of the data can be read"):
        take(source, 1, workers=workers)


# preparation


def prepared(
    picture: Image.Image, reference: Image.Image | None = None, side: int = 24
) -> dict[str, torch.Tensor]:
    from lib_ipadapter.training.source import Item

    return Preparation(side, SPEC)(Item("key", picture, reference or picture, ""))


@pytest.mark.parametrize("size", [(40, 30), (16, 16), (9, 31), (500, 20)])
def test_the_reference_is_prepared_as_inference_does(size):
    picture = noise(5, size)
    encoder = ImageEncoder(SPEC, nn.Identity(), Path())
    wanted = encoder.pixels(images.fit(picture, SPEC.image_size, "crop"))[0]
    assert torch.equal(prepared(noise(6), picture)["reference"], wanted)


def halves(width: int, height: int) -> Image.Image:
    """Red left (or above), blue right (or below)."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height) if width > height else (0, height // 2, width, height))
    return picture


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((96, 48), [48, 96, 0, 12, 24, 24]),  # landscape: 48x24, cut from left 12
        ((48, 96), [96, 48, 12, 0, 24, 24]),
        ((24, 24), [24, 24, 0, 0, 24, 24]),
        ((24, 40), [40, 24, 8, 0, 24, 24]),  # nothing to resize
        ((12, 18), [18, 12, 6, 0, 24, 24]),  # enlarged
    ],
)
def test_crop_and_size_conditions(size, sizes):
    tensors = prepared(halves(*size))
    assert tensors["sizes"].tolist() == sizes
    pixels = tensors["pixels"]
    assert pixels.shape == (3, 24, 24)
    assert pixels.dtype == torch.float32
    red, blue = (torch.tensor(colour) / 127.5 - 1 for colour in (RED, BLUE))
    assert torch.allclose(pixels[:, 0, 0], red, atol=1e-6)
    assert torch.allclose(pixels[:, -1, -1], blue, atol=1e-6)
    # The border between the halves is in the middle: the cut is the centre
    axis = 2 if size[0] > size[1] else 1
    if size[0] != size[1]:
        lines = pixels.mean(dim=3 - axis)
        assert lines[0, :11].min() > 0 > lines[0, 13:].max()


def test_pixels_are_the_pictures_own_where_nothing_is_resized():
    picture = noise(1, (24, 30))
    wanted = np.array(picture, dtype=np.float32)[3:27] / 127.5 - 1
    assert torch.equal(prepared(picture)["pixels"], torch.from_numpy(wanted).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(50_000, 3), (3, 50_000), (7_777, 11)])
def test_a_strip_is_cut_without_resizing_all_of_it(size, monkeypatch):
    largest = []
    resize = Image.Image.resize

    def watched(self, size, *args, **kwargs):
        largest.append(size[0] * size[1])
        return resize(self, size, *args, **kwargs)

    picture = halves(*size)
    monkeypatch.setattr(Image.Image, "resize", watched)
    square, (top, left) = data.square(picture, 64)
    assert square.size == (64, 64)
    assert max(largest) == 64 * 64
    assert max(top, left) == (round(max(size) * 64 / min(size)) - 64) // 2
    across = np.asarray(square)[:, :, 0] if size[0] > size[1] else np.asarray(square)[:, :, 0].T
    assert across[:, 0].min() > 150 > 50 > across[:, -1].max()


# cache

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
    (cache.folder / "features.npy").write_bytes(b"no array")
    with pytest.raises(FileError, match=r"features\.npy: cannot be read .*made again"):
        opened(tmp_path).get(0, "key")


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
    for ours, theirs in zip(chain(*cached), chain(*plain)):
        assert (ours.key, ours.caption) == (theirs.key, theirs.caption)
        assert [key for key, _ in ours.broken] == [key for key, _ in theirs.broken]
        assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in theirs.tensors)
