"""Where a training's pictures come from: folders and shards."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import tarfile
from itertools import pairwise

import pytest

from lib_ipadapter.errors import DataError
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.run_folder import RunFolder
from lib_ipadapter.training.runs.look import look
from lib_ipadapter.training.source import BrokenPicture
from lib_ipadapter.training.sources import open_source
from tests.training_pictures import BLUE, RED, encoded, noise, tar, write

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
        open_source(tar(tmp_path / "a.tar", {"a.png": encoded(), "a.txt": b"\xef\xbb\xbfa cat"})).caption(0) == "a cat"
    )


def test_a_caption_that_is_no_text_breaks_its_own_picture_only(tmp_path):
    write(tmp_path, {f"{name}.png": encoded() for name in "abcde"})
    write(tmp_path, {"a.txt": b"\xff\xfe\xff", "b.txt": "b", "c.txt": "x" * (2**20 + 1)})
    os.mkfifo(tmp_path / "d.txt")  # which would never end, as /dev/zero would not
    (tmp_path / "e.txt").symlink_to("/dev/zero")
    source = open_source(tmp_path)
    for index, name in ((0, "a"), (2, "c"), (3, "d"), (4, "e")):
        with pytest.raises(BrokenPicture, match=rf"{name}\.png: its caption {name}\.txt"):
            source.load(index)
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


def test_a_name_that_is_not_utf8_is_a_picture_like_any_other(tmp_path):
    name = os.fsdecode(b"\xff\xfe")
    (tmp_path / f"{name}.png").write_bytes(encoded())
    (tmp_path / f"{name}.txt").write_text("x")
    source = open_source(tmp_path)
    assert source.load(0).caption == "x"
    assert source.identity != source.fingerprint
    config = TrainConfig.parse({"base": "b", "data": "d", "encoder": "e", "out": str(tmp_path / "run")})
    folder = RunFolder(tmp_path / "run", config)
    folder.begin()
    folder.broken(source.key(0), "why")
    assert (tmp_path / "run" / "broken.txt").read_text() == "\\udcff\\udcfe.png\twhy\n"
    # What a process that was killed wrote last
    (tmp_path / "run" / "log.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n\xff\n{"ste')
    folder.trim_log(2)
    assert (tmp_path / "run" / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


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


@pytest.mark.parametrize("content", ['{"caption": 3}', "[1]", "{", b"\xff", "[" * 100_000])
def test_a_shards_caption_that_cannot_be_read_breaks_its_sample(tmp_path, content):
    source = open_source(tar(tmp_path / "a.tar", {"1.png": encoded(), "1.json": content}))
    with pytest.raises(BrokenPicture, match=r"a\.tar/1: its caption"):
        source.load(0)


@pytest.mark.parametrize("pattern", ["", "s-{000..002}.tar", "s-*.tar", "s-00[012].tar"])
def test_shards_are_found_by_folder_braces_and_stars(tmp_path, pattern):
    for n in range(3):
        tar(tmp_path / f"s-{n:03}.tar", {f"{i}.png": encoded() for i in range(n + 1)})
    source = open_source(str(tmp_path / pattern))
    assert [source.key(i) for i in range(len(source))] == [f"s-{n:03}.tar/{i}" for n in range(3) for i in range(n + 1)]


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


def test_a_pattern_cannot_name_more_shards_than_anybody_has(tmp_path):
    for braces in ("{0..999999999}", "{000..999}{000..999}{000..999}"):
        with pytest.raises(DataError, match="at most 100000 are opened"):
            open_source(str(tmp_path / f"s-{braces}.tar"))
    with pytest.raises(DataError):
        open_source(str(tmp_path / f"s-{{{'9' * 5000}..{'9' * 5000}}}.tar"))


@pytest.mark.parametrize("name", ["x" * 300, "\0", "x" * 300 + "{0..1}.tar", "x" * 300 + ".tar", "\ud800"])
def test_a_name_that_no_file_can_have_is_told(tmp_path, name):
    for read in (open_source, look):
        with pytest.raises(DataError):
            read(f"{tmp_path}/{name}")


def test_a_pipe_and_a_shard_that_goes_round_in_circles_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DataError, match="a device, socket or pipe, expected a tar file"):
        open_source(tmp_path / "pipe.tar")
    content = bytearray(tar(tmp_path / "a.tar", SHARD).read_bytes())
    content[124:136] = b"\xff" * 10 + b"\xfe\x00"  # a size of -512 bytes: the next header is this one
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar: .*make or download it again"):
        open_source(tmp_path / "a.tar")


@pytest.mark.parametrize("name", ["", ".", "a\0.png", "\ud800.png"])
def test_metadata_with_a_name_of_no_file_is_told_by_its_line(tmp_path, name):
    write(tmp_path, {"metadata.jsonl": json.dumps({"file_name": name, "text": "x"})})
    with pytest.raises(DataError, match="line 1: .*" if name else "line 1: '' is no file's name"):
        open_source(tmp_path)


def test_halves_of_characters_in_metadata_are_text_that_can_be_written(tmp_path):
    row = {"file_name": "a.png", "text": "\ud83d hi", "\ud800": "\udc00"}
    source = open_source(write(tmp_path, {"a.png": encoded(), "metadata.jsonl": json.dumps(row)}))
    assert source.caption(0) == "\\ud83d hi"
    assert source.identity
    write(tmp_path, {"metadata.jsonl": "[" * 100_000})
    with pytest.raises(DataError, match="line 1"):
        open_source(tmp_path)


@pytest.mark.parametrize("shards", [False, True])
def test_pictures_are_there_without_a_caption_that_cannot_be_read(tmp_path, shards):
    files = {"a.png": encoded(), "a.txt": b"caf\xe9"}
    source = open_source(tar(tmp_path / "a.tar", files) if shards else write(tmp_path, files))
    with pytest.raises(BrokenPicture, match="its caption"):
        source.load(0)
    assert source.pictures(0).picture.size == (30, 20)
