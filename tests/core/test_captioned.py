"""Training and evaluation read the same folder the same way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib_ipadapter.errors import DataError, FileError
from lib_ipadapter.evaluation import read_items
from lib_ipadapter.training.sources import open_source
from tests.training_pictures import BLUE, RED, encoded, write

FOLDERS = {
    "U+2028 in a caption": (
        {"metadata.jsonl": '{"file_name": "a.png", "text": "one\u2028line"}'},
        "one\u2028line",
    ),
    "BOM in metadata": ({"metadata.jsonl": '\ufeff{"file_name": "a.png", "text": "x"}'}, "x"),
    "BOM in a text": ({"a.txt": "\ufeffa cat"}, "a cat"),
    "caption for text": ({"metadata.jsonl": '{"file_name": "a.png", "caption": " x "}'}, "x"),
    "text before caption": ({"metadata.jsonl": '{"file_name": "a.png", "text": "x", "caption": "y"}'}, "x"),
    "null text": ({"metadata.jsonl": '{"file_name": "a.png", "text": null, "caption": "y"}'}, "y"),
    "Windows lines": ({"metadata.jsonl": '{"file_name": "a.png", "text": "x"}\r\n\r\n'}, "x"),
    "a text of two lines": ({"a.txt": "one\n two\n"}, "one\n two"),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_one_caption(tmp_path: Path, what: str) -> None:
    files, expected = FOLDERS[what]
    write(tmp_path, {"a.png": encoded(), **files})
    (item,) = read_items(tmp_path)
    assert item.caption == open_source(tmp_path).caption(0) == expected


@pytest.mark.parametrize("path", ["../a.png", "/etc/a.png", "in/../../a.png", "C:/a.png", "..\\a.png"])
def test_paths_that_leave_the_folder_are_refused_by_both(tmp_path: Path, path: str) -> None:
    write(tmp_path, {"in/a.png": encoded(), "a.png": encoded()})
    (tmp_path / "in" / "metadata.jsonl").write_text(json.dumps({"file_name": path, "text": "x"}))
    for read in (read_items, open_source):
        with pytest.raises(DataError, match=r"line 1: .* leaves the folder"):
            read(tmp_path / "in")


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "x"}', '{"file_name": "a.png", "text": 3}'])
def test_bad_lines_are_refused_by_both(tmp_path: Path, line: str) -> None:
    write(tmp_path, {"a.png": encoded(), "metadata.jsonl": line})
    for read in (read_items, open_source):
        with pytest.raises(DataError, match="line 1: expected an object"):
            read(tmp_path)


@pytest.mark.parametrize("metadata", [False, True])
def test_references_are_the_same_picture(tmp_path: Path, metadata: bool) -> None:
    write(tmp_path, {"a.png": encoded(RED), "a.ref.png": encoded(BLUE), "a.txt": "x"})
    if metadata:
        row = {"file_name": "a.png", "reference": "a.ref.png", "text": "x", "full": "all of it"}
        write(tmp_path, {"metadata.jsonl": json.dumps(row)})
    (item,) = read_items(tmp_path)
    assert item.load().getpixel((0, 0)) == open_source(tmp_path).load(0).reference.getpixel((0, 0)) == BLUE
    assert dict(item.fields) == ({"full": "all of it"} if metadata else {})


def test_the_same_files_are_pictures(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.GIF", "c.tif", "d.md", "e.JPE"):
        write(tmp_path, {name: encoded(), Path(name).with_suffix(".txt").name: "x"})
    source = open_source(tmp_path)
    names = [source.key(i) for i in range(len(source))]
    assert names == ["a.jfif", "b.GIF", "c.tif", "e.JPE"]
    assert [Path(item.picture).name for item in read_items(tmp_path)] == names


def test_a_caption_that_is_no_text_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": encoded(), "a.txt": b"\xff\xfe\xff"})
    with pytest.raises(FileError, match=r"a\.txt: this caption cannot be read"):
        read_items(tmp_path)
