"""Files are replaced whole or not at all, by any number of threads, and deleted with a reason."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lib_ipadapter.atomic import remove, replacing
from lib_ipadapter.errors import FileError
from lib_ipadapter.files.tensors import open_tensors, save_tensors


def test_many_threads_replace_one_file(tmp_path):
    """A23: part files named by the process failed 11 times of 200."""

    def save(number: int) -> None:
        save_tensors({"a": torch.full((64,), float(number))}, tmp_path / "one.safetensors")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, range(200)))
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]
    assert open_tensors(tmp_path / "one.safetensors").read("a").unique().numel() == 1


def test_an_error_keeps_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "made" / "a.txt"
    with replacing(path) as part:
        part.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("new")
        raise KeyboardInterrupt
    assert [(found.name, found.read_text()) for found in path.parent.iterdir()] == [("a.txt", "old")]


def test_a_name_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("x" * 251 + ".txt")
    with replacing(path) as part:
        part.write_text("whole")
    assert path.read_text() == "whole"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
def test_what_the_system_refuses_is_a_file_error_with_its_reason(tmp_path, monkeypatch, error):
    def refuse(*_args: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(Path, "replace", refuse)
    with (
        pytest.raises(FileError, match=f"a.txt: cannot be written in .*{error.strerror}"),
        replacing(tmp_path / "a.txt"),
    ):
        pass
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(FileError, match=f"a.txt: cannot be deleted: {error.strerror}"):
        remove(tmp_path / "a.txt")


def test_what_is_gone_already_is_no_error(tmp_path):
    remove(tmp_path / "a.txt")
