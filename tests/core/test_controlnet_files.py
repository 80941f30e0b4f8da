"""ControlNets on the disk: found by their keys under any name, and what is said of those that cannot be used."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file

from lib_ipadapter.attention.prompt import Timing
from lib_ipadapter.controlnet import files
from lib_ipadapter.controlnet.control import Control
from lib_ipadapter.controlnet.files import ControlNets
from lib_ipadapter.errors import BrokenControl, ControlMissing, FileError, WrongBase
from lib_ipadapter.files import disk
from tests.controlnets import Noise, ldm_control
from tests.core.test_controlnet import CONTEXT, World
from tests.core.test_library import denied

# Shapes that no ControlNet has, each complete in itself
BROKEN = {
    "no hint": {},
    "a hint of another width": {"input_hint_block.14.weight": (48, 64, 3, 3), "input_hint_block.14.bias": (48,)},
    "blocks of other widths": {"input_blocks.1.0.in_layers.0.weight": (64,), "input_blocks.1.0.in_layers.0.bias": (64,),
                               "input_blocks.1.0.in_layers.2.weight": (32, 64, 3, 3),
                               "input_blocks.1.0.skip_connection.weight": (32, 64, 1, 1),
                               "input_blocks.1.0.skip_connection.bias": (32,)},
    "a zero convolution to another width": {"zero_convs.3.0.weight": (16, 32, 1, 1), "zero_convs.3.0.bias": (16,)},
}  # fmt: skip


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def test_it_is_found_under_any_name(world):
    assert world.nets.find("auto", CONTEXT).name == "control"
    world.write("canny", seed=4)
    with pytest.raises(ControlMissing, match="cannot be told among canny, control"):
        world.nets.find("auto", CONTEXT)
    (world.folder / "people").mkdir()
    world.write("people/InstantID-ControlNet", seed=5)
    found = world.nets.find("auto", CONTEXT)
    assert found.name == "people/InstantID-ControlNet"
    assert world.nets.is_instant_id(found)
    assert world.nets.find("CANNY.safetensors", CONTEXT).name == "canny"
    assert "adapters/adapter" not in world.nets.names()


@pytest.mark.parametrize("below", ["state_dict.control_model", "module", "state_dict.module.controlnet"])
def test_a_training_s_checkpoint(world, below):
    """As a trainer saves it: a pickle, the network inside, other parts and its state beside it."""
    posed = world.draw(world.prompt(world.control()))
    content = {key: value.clone() for key, value in ldm_control(world.unet.state_dict()).items()}
    *outer, inner = below.split(".")
    content = {f"{inner}.{key}": value for key, value in content.items()} | {"first_stage_model.x": torch.zeros(2)}
    for name in reversed(outer):
        content = {name: content, "epoch": 3, "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}]}
    (world.folder / "control.safetensors").unlink()
    torch.save(content, world.folder / "control.ckpt")
    assert torch.equal(world.draw(world.prompt(world.control())), posed)


def test_files_of_one_name_hide_none(world, tmp_path, monkeypatch):
    """The hub's files have the same name for every model: one of another base, a broken one, one in a folder more."""
    name = "diffusion_pytorch_model"
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, context in ((first, 96), (second, CONTEXT)):
        folder.mkdir()
        world.write(f"{folder.name}/{name}", context=context)
    (world.folder / "control.safetensors").unlink()
    nets = ControlNets(lambda: [first, second])
    assert nets.find("auto", CONTEXT).path == second / f"{name}.safetensors"
    assert nets.find("Auto", 96).path == first / f"{name}.safetensors"
    assert nets.names() == [name]
    (second / f"{name}.safetensors").rename(first / f"{name}.bin")
    assert nets.find("auto", CONTEXT).path.suffix == ".bin"
    assert nets.find(f"{name}.bin", CONTEXT).path.suffix == ".bin"
    cut = first / f"{name}.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    assert nets.find("auto", CONTEXT).path.suffix == ".bin"
    # A folder that lies in another one, and copies of a published file, are no choice to be made.
    nets = ControlNets(lambda: [first, tmp_path])
    assert nets.find("auto", CONTEXT).name == name
    world.write("copy", seed=4)
    monkeypatch.setattr(files, "short_hash", lambda path: "c5c25a50" if path.suffix != ".pth" else "")
    assert nets.find("auto", CONTEXT).name == name


def test_a_file_that_could_not_be_opened_is_looked_at_again(world, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "open", denied)
        with pytest.raises(ControlMissing):
            world.nets.find("auto", CONTEXT)
    assert world.nets.find("auto", CONTEXT).name == "control"


def test_what_is_missing_is_said_with_the_places(world):
    with pytest.raises(ControlMissing) as caught:
        world.nets.find("auto", 96)
    assert "InstantID's ControlNet is missing" in str(caught.value)
    assert str(world.folder) in str(caught.value)
    with pytest.raises(ControlMissing, match="no ControlNet named 'depth'; there are: control"):
        world.nets.find("depth", CONTEXT)


def test_a_folder_that_is_not_there_is_named_where_there_is_no_other(world):
    gone = world.folder / "extensions"
    for folders, named in (([gone, world.folder], world.folder), ([gone], gone)):
        world.nets.folders = lambda folders=folders: folders
        with pytest.raises(ControlMissing, match=f"into one of {re.escape(str(named))}[,;]"):
            world.nets.find("auto", 96)


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "empty"), (b"<html>Not Found</html>", "web page"), (b"\1" * 64, "depth.safetensors")]
)
def test_a_chosen_file_that_is_no_controlnet_is_said_to_be_none(world, content, words):
    (world.folder / "depth.safetensors").write_bytes(content)
    for name in ("depth", "Depth.safetensors"):
        with pytest.raises(FileError, match=words):
            world.nets.find(name, CONTEXT)


def test_a_file_that_is_cut_off_is_named_where_none_fits(world):
    path = world.folder / "control.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ControlMissing, match=r"missing: no file .* that can be used \(control: .*download it again"):
        world.nets.find("auto", CONTEXT)


def test_files_that_cannot_be_used(world):
    world.write("union", task_embedding=torch.zeros(6, 32))
    with pytest.raises(BrokenControl, match="ControlNet Union"):
        world.nets.find("union", CONTEXT)
    world.write("cut", drop="middle_block.1.transformer_blocks.0.attn1.to_q.weight")
    with pytest.raises(BrokenControl, match="1 missing"):
        world.nets.load(world.nets.find("cut", CONTEXT).path)
    for name, changed in BROKEN.items():
        state = ldm_control(world.unet.state_dict()) | {key: torch.zeros(shape) for key, shape in changed.items()}
        kept = {k: v.contiguous() for k, v in state.items() if changed or not k.startswith("input_hint_block")}
        save_file(kept, world.folder / "odd.safetensors")
        with pytest.raises(BrokenControl, match=r"odd\.safetensors: its layers do not fit together"):
            world.nets.load(world.nets.find("odd", CONTEXT).path)
            raise AssertionError(name)
    world.write("wide", context=96)
    wide = world.nets.find("wide", CONTEXT)
    control = Control(world.nets, wide.path, wide.spec, [Noise()], 1.0, Timing())
    base = world.draw()
    with pytest.raises(WrongBase, match="tokens are 96 wide and the model's 64"):
        world.draw(world.prompt(control))
    assert torch.equal(world.draw(), base)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in world.unet.modules())
