from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from lib_ipadapter.errors import AdapterMissing
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
    library = Library(
        [Folder(tmp_path / "own"), Folder(tmp_path / "shared", shared=True), Folder(tmp_path / "none")]
    )
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


def test_a_near_miss_is_suggested(library):
    with pytest.raises(AdapterMissing, match="Did you mean Base SD15"):
        library.find("Base SD1.5")


def test_a_file_that_changed_is_looked_at_again(tmp_path, library):
    adapter(tmp_path / "shared" / "lora.safetensors")
    library.refresh()
    assert "lora" in library.names()


def test_looking_at_a_pickle_runs_nothing_of_it(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("pwned").touch, ())

    torch.save({"image_proj": Evil()}, tmp_path / "evil.bin")
    assert looks_like_adapter(tmp_path / "evil.bin")
    assert not (tmp_path / "pwned").exists()
