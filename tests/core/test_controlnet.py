"""A prompt's ControlNet on a small UNet: when and where it acts, its file, and where it goes afterwards."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open as open_file
from safetensors.torch import save_file

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.prompt import Timing
from lib_ipadapter.attention.region import Region
from lib_ipadapter.attention.rows import CursorRows
from lib_ipadapter.attention.session import COND, UNCOND, ImagePrompt, Session
from lib_ipadapter.controlnet import control as controls
from lib_ipadapter.controlnet.control import Control, cut
from lib_ipadapter.controlnet.files import ControlNets
from lib_ipadapter.errors import BrokenControl, RowsError, WrongBase
from lib_ipadapter.unit.weights import LayerRule, layers_table
from tests.controlnets import Noise, ldm_control
from tests.synthetic import adapter_tensors, write_adapter

openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason="ldm is not installed")

CONTEXT, WIDTHS = 64, (32, 32, 64, 64, 64, 64, 64, 32, 32, 32, 64)
SETS = [COND, UNCOND]


def unet_of(context: int = CONTEXT, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    unet = openaimodel.UNetModel(
        image_size=8, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=2, channel_mult=(1, 2),
        attention_resolutions=[2, 1], num_heads=4, use_spatial_transformer=True, transformer_depth=1,
        context_dim=context, use_checkpoint=False, legacy=False,
    )  # fmt: skip
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return unet.eval().requires_grad_(False)


class World:
    """A UNet, an adapter, a ControlNet's file, and the inputs of a call."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.unet = unet_of()
        path = folder / "adapters" / "adapter.safetensors"
        path.parent.mkdir()
        write_adapter(path, adapter_tensors("base", CONTEXT, WIDTHS, 48, seed=3))
        self.adapter = Adapter.load(path)
        self.write("control")
        self.stays = "memory"
        self.leaves = ""
        self.said: list[str] = []
        self.nets = ControlNets(lambda: [folder], lambda: self.stays, lambda: self.leaves, tell=self.said.append)
        g = torch.Generator().manual_seed(5)
        self.tokens = torch.cat([self.adapter.tokens(torch.randn(1, 48, generator=g)) for _ in SETS])
        self.x = torch.randn(2, 4, 16, 16, generator=g)
        self.text = torch.randn(2, 7, CONTEXT, generator=g)

    def write(self, name: str, context: int = CONTEXT, seed: int = 3, drop: str = "", **more) -> None:
        unet = self.unet if context == CONTEXT else unet_of(context)
        tensors = {k: v.contiguous() for k, v in ldm_control(unet.state_dict(), seed).items() if k != drop or not drop}
        save_file({**tensors, **more}, self.folder / f"{name}.safetensors")

    def control(self, weight: float = 1.0, timing: Timing | None = None, hint=None) -> Control:
        found = self.nets.find("control", CONTEXT)
        return Control(self.nets, found.path, found.spec, [hint or Noise(1)], weight, timing or Timing())

    def prompt(self, control=None, **more) -> ImagePrompt:
        return ImagePrompt(self.adapter, self.tokens, torch.ones(4), **{"weight": 0.8, "beside": control, **more})

    def draw(self, *prompts, fraction: float = 0.0, size=(16, 16), tiles=lambda whole, tile: (), x=None):
        session = Session(prompts, tiles, CursorRows())
        x = self.x if x is None else x
        with session.attached(self.unet):
            session.begin_step(SETS, fraction, size=size)
            return self.unet(x, torch.tensor([500, 500]), context=self.text)


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def test_it_acts_and_goes_without_a_trace(world):
    base = world.draw()
    alone = world.draw(world.prompt())
    posed = world.draw(world.prompt(world.control()))
    assert not torch.allclose(posed, alone, atol=1e-3)
    assert torch.equal(world.draw(world.prompt(world.control(0.0))), alone)
    assert torch.equal(world.draw(world.prompt(world.control(), weight=0.0)), base)
    assert torch.equal(world.draw(), base)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in world.unet.modules())


def part_by_part(block, hidden, emb, context):
    for part in block:
        if isinstance(part, openaimodel.TimestepBlock):
            hidden = part(hidden, emb)
        else:
            hidden = part(hidden, context) if isinstance(part, openaimodel.SpatialTransformer) else part(hidden)
    return hidden


def as_reforge_calls(unet, x, timesteps, context):
    """Never a block, only the modules in it."""
    emb = unet.time_embed(openaimodel.timestep_embedding(timesteps, unet.model_channels, repeat_only=False))
    hidden, skipped = x, []
    for block in unet.input_blocks:
        hidden = part_by_part(block, hidden, emb, context)
        skipped.append(hidden)
    hidden = part_by_part(unet.middle_block, hidden, emb, context)
    for block in unet.output_blocks:
        hidden = part_by_part(block, torch.cat([hidden, skipped.pop()], dim=1), emb, context)
    return unet.out(hidden)


def test_where_blocks_are_not_called_but_what_is_in_them(world, monkeypatch):
    base, posed = world.draw(), world.draw(world.prompt(world.control()))
    monkeypatch.setattr(world.unet, "forward", lambda *args, **kwargs: as_reforge_calls(world.unet, *args, **kwargs))
    assert torch.equal(world.draw(), base)
    assert torch.equal(world.draw(world.prompt(world.control())), posed)


def test_a_pass_of_other_latents_beside_the_call_s_own(world, monkeypatch):
    """sd-webui-controlnet's reference-only sends another picture through the blocks first, with the call's text: the
    hint and the outputs are not that picture's, as the extension's own ControlNets leave it alone too."""
    off = world.prompt(world.control(), rule=LayerRule("linear", 1.0, layers_table("0:0")))
    posed, other = world.draw(off), torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(8))
    forward, first = world.unet.forward, []

    def twice(x, timesteps, context):
        first.append(forward(other, timesteps, context=context[:]))
        return forward(torch.cat([x[:, :4], x[:, 4:] + 1], 1), timesteps, context=context)

    monkeypatch.setattr(world.unet, "forward", twice)
    base = world.draw()
    assert torch.equal(world.draw(off), posed)
    assert torch.equal(world.draw(off, x=world.x.clone()), posed)
    assert torch.equal(world.draw(), base)
    assert all(torch.equal(one, first[0]) for one in first)
    world.draw(world.prompt())
    assert not torch.equal(first[-1], first[0])  # the terms act in it


def test_its_timing_lies_within_the_prompt_s(world):
    alone, posed = world.draw(world.prompt()), world.draw(world.prompt(world.control()))
    late = world.control(timing=Timing(0.5))
    assert torch.equal(world.draw(world.prompt(late)), alone)
    assert torch.equal(world.draw(world.prompt(late), fraction=0.5), posed)
    early = world.prompt(world.control(), timing=Timing(end=0.5))
    assert torch.equal(world.draw(early, fraction=0.5), world.draw())


def test_weights_scale_what_is_added_and_units_add(world):
    """The layer weights are 0, so that only the ControlNets act: twice a half is the whole."""
    off = LayerRule("linear", 1.0, layers_table("0:0"))
    whole = world.draw(world.prompt(world.control(1.0), rule=off))
    halves = world.draw(*(world.prompt(world.control(0.5), rule=off) for _ in range(2)))
    assert torch.allclose(halves, whole, atol=1e-5)
    assert not torch.allclose(world.draw(world.prompt(world.control(0.5), rule=off)), whole, atol=1e-3)


def test_a_region(world):
    half = torch.zeros(16, 16)
    half[:, :8] = 1
    drawn = [world.draw(world.prompt(world.control(), region=Region(m))) for m in (half, 1 - half, torch.ones(16, 16))]
    assert torch.allclose(drawn[2], world.draw(world.prompt(world.control())), atol=1e-5)
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)


def test_tiles_get_their_part_of_the_hint(world):
    """A tile alone, of latents that show that part of the picture, gives the same."""
    left = world.x[..., :8]
    tile = world.draw(
        world.prompt(world.control()), x=left, size=(16, 16), tiles=lambda whole, size: [(0.0, 0.0, 0.5, 1.0)]
    )

    class Left(Noise):
        def at(self, size, box):
            return super().at((128, 128), box)[:, :64]

    assert torch.allclose(tile, world.draw(world.prompt(world.control(hint=Left(1))), x=left, size=(16, 8)), atol=1e-5)
    with pytest.raises(RowsError, match="pose"):
        world.draw(world.prompt(world.control()), x=left, size=(16, 16))


def test_what_it_leaves_on_the_device(world):
    """Outputs until the call is over; of a pass that is over nothing where memory is short."""
    made = []

    class Noted(Control):
        def residuals(self, *given):
            found = super().residuals(*given)
            made.extend(weakref.ref(one) for one in found)
            return found

    plain = world.control()
    control = Noted(world.nets, plain.path, plain.spec, plain.hints, 1.0, Timing())
    world.leaves = "pass"
    session = Session([world.prompt(control)], rows=CursorRows())
    with session.attached(world.unet):
        session.begin_step(SETS, 0.0)
        world.unet(world.x, torch.tensor([500, 500]), context=world.text)
        session.end_step()
        assert len(made) == 7
        assert not any(one() is not None for one in made)
        assert control._features
        session.pause()
        assert not control._features


def test_many_tiles_are_drawn_once_as_far_as_there_is_room(world, monkeypatch):
    class Counted(Noise):
        drawn = 0

        def at(self, size, box):
            Counted.drawn += 1
            return super().at(size, box)

    tiles = [(i / 130, 0.0, i / 130 + 0.5, 0.5) for i in range(65)]
    session = Session([world.prompt(world.control(hint=Counted()))], lambda whole, tile: tiles, CursorRows())
    with session.attached(world.unet):
        for room, drawn in ((None, 65), (None, 65), (32 * 8 * 8 * 4 * 64, 65), (0, 130)):
            if room is not None:
                monkeypatch.setattr(controls, "_KEPT", room)
            if room == 0:
                session._beside._prompts[0].prompt.beside._features.clear()
            session.begin_step(SETS, 0.0, size=(16, 16))
            session.rows.chunk(2)
            world.unet(
                world.x[..., :8, :8].repeat(65, 1, 1, 1), torch.tensor([500] * 130), context=world.text.repeat(65, 1, 1)
            )
            session.end_step()
            assert Counted.drawn == drawn


def test_a_reference_s_weight_counts_in_the_controlnet_too(world):
    """V' of its tokens is scaled, as in the UNet's own layers: 0 leaves nothing of what it shows."""
    off = LayerRule("linear", 1.0, layers_table("0:0"))
    network = world.nets.load(world.folder / "control.safetensors").at(torch.device("cpu"), torch.float32)
    weights = torch.tensor([1.0, 0.5, 0.0, -1.0])
    plain = world.draw(world.prompt(world.control(), rule=off))
    weighted = world.draw(replace(world.prompt(world.control(), rule=off), token_weights=weights))
    handles = [
        module.attn2.to_v.register_forward_hook(lambda _, args, output: output * weights[:, None])
        for module in network.modules()
        if hasattr(module, "attn2")
    ]
    expected = world.draw(world.prompt(world.control(), rule=off))
    for handle in handles:
        handle.remove()
    assert not torch.allclose(weighted, plain, atol=1e-4)
    assert torch.allclose(weighted, expected, atol=1e-5)
    of_sets = torch.stack([weights, torch.ones(4)])
    assert not torch.allclose(
        world.draw(replace(world.prompt(world.control(), rule=off), token_weights=of_sets)), weighted
    )


def test_a_file_that_is_replaced_before_it_is_read(world):
    control = world.control()
    world.write("control", context=96)
    with pytest.raises(WrongBase, match="tokens are 96 wide and the model's 64"):
        world.draw(world.prompt(control))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in world.unet.modules())


def test_whether_it_acted_is_told_apart_from_its_prompt(world):
    late, posed = world.prompt(world.control(timing=Timing(0.5))), world.prompt(world.control())
    session = Session([late, posed], rows=CursorRows())
    with session.attached(world.unet):
        session.begin_step(SETS, 0.0)
        world.unet(world.x, torch.tensor([500, 500]), context=world.text)
    assert {id(late), id(posed), id(posed.beside)} == session.acted


def test_cut_takes_the_tile_s_pixels():
    picture = np.arange(64 * 64 * 3).reshape(64, 64, 3)
    assert np.array_equal(cut(picture, (4, 2), (0.25, 0.5, 0.5, 1.0)), picture[32:64, 16:32])


def test_where_it_goes_afterwards(world):
    posed = world.prompt(world.control())
    first = world.draw(posed)
    loaded = world.nets.load(world.folder / "control.safetensors")
    assert loaded.device is None  # "memory": off the device
    world.stays = "device"
    assert torch.equal(world.draw(posed), first)
    assert loaded.device == torch.device("cpu")
    world.leaves = "pass"
    world.draw(posed)
    assert loaded.device is None
    session = Session([posed], rows=CursorRows())
    with session.attached(world.unet):
        session.begin_step(SETS, 0.0)
        world.unet(world.x, torch.tensor([500, 500]), context=world.text)
        assert loaded.device == torch.device("cpu")
        session.end_step()
        session.pause()  # behind a pass's last step
        assert loaded.device is None
    world.leaves = "call"
    assert torch.equal(world.draw(posed), first)
    world.stays = "nothing"
    assert torch.equal(world.draw(posed), first)
    assert world.nets.load(world.folder / "control.safetensors") is not loaded


def test_loading_is_said(world):
    for _ in range(2):
        world.nets.load(world.folder / "control.safetensors")
    assert world.said == ["loading the ControlNet control.safetensors", ""]


def test_what_is_loaded_does_not_follow_its_file(world):
    """Mapped memory of a file that is cut off ends the process."""
    path = world.folder / "control.safetensors"
    loaded, kept = world.nets.load(path), world.nets.load(path).network.state_dict()
    kept = {key: value.clone() for key, value in kept.items()}
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))
    now = loaded.at(torch.device("cpu"), torch.float64).state_dict()
    assert all(torch.equal(now[key], value.double()) for key, value in kept.items())


def test_weights_that_are_not_finite_are_told(world):
    """They would make the picture black, or end in the WebUI's message about precision."""
    key = "zero_convs.0.0.weight"
    before = world.draw(world.prompt())
    with open_file(world.folder / "control.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    (world.folder / "control.safetensors").unlink()
    world.write("control", **{key: torch.full_like(tensors[key], float("nan"))})
    with pytest.raises(BrokenControl, match=rf"NaN or infinite weights in {key}"):
        world.draw(world.prompt(world.control()))
    assert torch.equal(world.draw(world.prompt()), before)


def test_a_file_that_is_replaced_leaves_memory_at_once(world):
    """Each takes gigabytes, and the new one is not read before the old one is gone."""
    path = world.folder / "control.safetensors"
    loaded = world.nets.load(path)
    old = weakref.ref(loaded)
    del loaded
    gone: list[bool] = []
    world.nets.tell = lambda text: gone.append(old() is None)
    path.unlink()
    world.write("control", seed=9)
    world.write("second", seed=10)
    world.nets.load(path)
    assert gone == [True, True]
    kept = weakref.ref(world.nets.load(path))
    assert world.nets.load(world.folder / "second.safetensors") is not kept() is not None
    path.unlink()
    world.nets.load(world.folder / "second.safetensors")
    assert kept() is None
