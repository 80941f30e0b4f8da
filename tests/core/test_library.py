from __future__ import annotations

import os
import socket
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_ipadapter.errors import AdapterMissing
from lib_ipadapter.files import disk
from lib_ipadapter.files.library import Folder, Library, looks_like_adapter


def adapter(path, tensors=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = tensors or {
        "image_proj.proj.weight": torch.zeros(1),
        "ip_adapter.1.to_k_ip.weight": torch.zeros(1),
    }
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


@pytest.fixture
def library(tmp_path):
    adapter(tmp_path / "own" / "Base SD15.safetensors")
    adapter(tmp_path / "own" / "sub" / "plus.bin")
    adapter(tmp_path / "own" / "both.bin")
    adapter(tmp_path / "own" / "both.safetensors")
    (tmp_path / "own" / "notes.txt").write_text("no model")
    adapter(tmp_path / "shared" / "shared.safetensors")
    adapter(tmp_path / "shared" / "shared.bin")
    adapter(tmp_path / "shared" / "control.pth", {"control_model.weight": torch.zeros(1)})
    adapter(tmp_path / "shared" / "lora.safetensors", {"lora_unet.lora_down.weight": torch.zeros(1)})
    (tmp_path / "shared" / "broken.safetensors").write_bytes(b"\x01")
    library = Library([Folder(tmp_path / "own"), Folder(tmp_path / "shared", shared=True), Folder(tmp_path / "none")])
    library.refresh()
    return library


def test_lists_own_folders_whole_and_of_shared_ones_the_adapters(library):
    assert library.names() == [
        "Base SD15", "both.bin", "both.safetensors", "shared.bin", "shared.safetensors", "sub/plus",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "Base SD15",
        "base sd15",
        " Base SD15 ",
        "Base SD15.safetensors",
        "sub/plus",
        "sub\\plus.bin",
        "both.bin",
    ],
)
def test_finds_with_and_without_extension_and_with_stray_spaces(library, name):
    assert library.find(name).is_file()


def test_every_listed_name_finds_its_file(library):
    assert len({library.find(name) for name in library.names()}) == len(library.names())


@pytest.mark.parametrize("name", ["../own/both.bin", "/etc/passwd", "plus", "notes", "Base SD16", "lora", ""])
def test_what_is_not_listed_is_not_opened(library, name):
    with pytest.raises(AdapterMissing, match="no adapter named") as caught:
        library.find(name)
    assert caught.value.detail["expected"] == library.names()


def test_people_are_sent_to_no_folder_of_an_extension_that_is_not_there(tmp_path):
    (tmp_path / "ControlNet").mkdir()
    there, gone = (Folder(tmp_path / name, shared=True) for name in ("ControlNet", "extensions"))
    library = Library([Folder(tmp_path / "own", create=True), Folder(tmp_path / "named"), there, gone])
    with pytest.raises(AdapterMissing) as caught:
        library.find("none such")
    named = str(caught.value).partition("Put the file into one of ")[2].removesuffix(" and refresh the list")
    assert named == ", ".join(str(tmp_path / name) for name in ("own", "named", "ControlNet"))


def test_a_near_miss_is_suggested(library):
    with pytest.raises(AdapterMissing, match="Did you mean Base SD15"):
        library.find("Base SD1.5")


def test_a_file_that_changed_is_looked_at_again(tmp_path, library):
    adapter(tmp_path / "shared" / "lora.safetensors")
    library.refresh()
    assert "lora" in library.names()


def test_a_file_that_could_not_be_opened_is_looked_at_again(tmp_path, library, monkeypatch):
    """Another program may have it open for a moment; nothing of the file changes afterwards."""
    adapter(tmp_path / "shared" / "late.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "open", denied)
        library.refresh()
        assert "late" not in library.names()
    library.refresh()
    assert "late" in library.names()


def denied(*given, **more):
    raise PermissionError(13, "Permission denied")


def test_looking_at_a_pickle_runs_nothing_of_it(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("pwned").touch, ())

    torch.save({"image_proj": Evil()}, tmp_path / "evil.bin")
    assert looks_like_adapter(tmp_path / "evil.bin")
    assert not (tmp_path / "pwned").exists()


# what lies in people's folders


def _zip(path, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as made:
        made.writestr("archive/data.pkl", b"ip_adapter image_proj " * 99)


def _encrypted(path):
    _zip(path)
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)


def _method(path, method):
    _zip(path)
    data = bytearray(path.read_bytes())
    data[8] = data[data.index(b"PK\x01\x02") + 10] = method
    path.write_bytes(data)


ODD = {
    "encrypted.pth": _encrypted,
    "aes.pth": lambda path: _method(path, 99),
    "deflated.pth": lambda path: _zip(path, zipfile.ZIP_DEFLATED),
    "lzma.ckpt": lambda path: _zip(path, zipfile.ZIP_LZMA),
    "unknown.pt": lambda path: _method(path, 12 + 80),
    "empty.bin": lambda path: path.write_bytes(b""),
    "one-byte.safetensors": lambda path: path.write_bytes(b"\x01"),
    "cut.pth": lambda path: path.write_bytes(b"PK\x03\x04"),
    "fifo.bin": lambda path: os.mkfifo(path),
    "socket.bin": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "folder.safetensors": lambda path: path.mkdir(),
    "gone.bin": lambda path: path.symlink_to("nowhere"),
    "itself.bin": lambda path: path.symlink_to(path),
    "zeros.bin": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.skipif(os.name == "nt", reason="FIFOs, sockets and links as unprivileged users make them")
@pytest.mark.parametrize("name", ODD)
def test_no_file_breaks_the_list(library, tmp_path, name, monkeypatch):
    """A14: an encrypted or oddly compressed file in a shared folder left the user without a list."""
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    before = library.names()
    for folder in ("shared", "own"):
        ODD[name](Path(folder) / name)
    library.refresh()
    assert [found for found in library.names() if "own" not in found and name.partition(".")[0] != found] == before


def test_legacy_pickles_and_any_case_of_the_suffix_are_listed(library, tmp_path):
    """A14"""
    torch.save(
        {"image_proj": {"proj.weight": torch.zeros(1)}},
        tmp_path / "shared" / "old.bin",
        _use_new_zipfile_serialization=False,
    )
    torch.save({"lora": torch.zeros(1)}, tmp_path / "shared" / "other.bin", _use_new_zipfile_serialization=False)
    adapter(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").rename(tmp_path / "shared" / "X.SAFETENSORS")
    library.refresh()
    assert {"old", "X"} <= set(library.names())
    assert "other" not in library.names()


def test_linked_folders_are_listed_and_circles_once(library, tmp_path):
    """A14, issue 14: linked subfolders of models/ipadapter."""
    adapter(tmp_path / "elsewhere" / "deep" / "far.safetensors")
    (tmp_path / "own" / "a link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "own")
    (tmp_path / "own" / "sub" / "up").symlink_to(tmp_path / "own")
    adapter(tmp_path / "own" / "zz" / "real.safetensors")
    (tmp_path / "own" / "aa").symlink_to(tmp_path / "own" / "zz")
    before = set(library.names())
    library.refresh()
    assert set(library.names()) - before == {"a link/deep/far", "zz/real"}
    assert library.find("a link/deep/far").is_file()


def test_a_folder_that_vanishes_while_it_is_listed(library, tmp_path, monkeypatch):
    real = Path.stat
    gone = str(tmp_path / "own" / "both.bin")

    def stat(path, **named):
        if str(path) == gone:
            raise FileNotFoundError(2, "gone", gone)
        return real(path, **named)

    monkeypatch.setattr(Path, "stat", stat)
    library.refresh()
    assert "both" in library.names()


def test_the_folder_that_users_are_sent_to_exists(tmp_path):
    """A23: models/ipadapter was never made."""
    library = Library([Folder(tmp_path / "models" / "ipadapter", create=True), Folder(tmp_path / "none")])
    library.refresh()
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert (tmp_path / "models" / "ipadapter").is_dir()
