"""A ControlNet by hooks, with image tokens as its context, against diffusers' ControlNetModel and UNet with the same
random weights: on diffusers' own UNets, and on ldm's. float32."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.prompt import Timing
from lib_ipadapter.attention.region import Region
from lib_ipadapter.attention.session import ImagePrompt, Session
from lib_ipadapter.controlnet.control import Control
from lib_ipadapter.controlnet.files import ControlNets
from tests.controlnets import Noise, ldm_control
from tests.parity.test_unet_parity import CONTEXT, SD1, SDXL, TOLERANCE, adapter_state, relative, small

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

POOLED, SIZES_DIM = 40, 8
LABELLED = {**SDXL, "addition_embed_type": "text_time", "addition_time_embed_dim": SIZES_DIM,
            "projection_class_embeddings_input_dim": POOLED + 6 * SIZES_DIM}  # fmt: skip
SETS = [0, 2, 1, 3]  # two pictures: cond rows, then uncond rows
GEOMETRIES = [(16, 16), (24, 8), (8, 40)]  # all of SD1; the sizes of SDXL take the same way
STRENGTH, POSE = 0.8, 0.7


class World:
    """A UNet, an adapter and a ControlNet with diffusers' names, and the inputs of a call."""

    def __init__(self, config, folder, size) -> None:
        self.unet = small(config)
        self.control = diffusers.ControlNetModel.from_unet(self.unet)
        g = torch.Generator().manual_seed(5)
        for parameter in self.control.parameters():  # zero convolutions would hide all else
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=g)
        self.control.eval().requires_grad_(False)
        save_file({k: v.contiguous() for k, v in self.control.state_dict().items()}, folder / "control.safetensors")
        self.state = adapter_state(self.unet)
        flat = {f"{part}.{key}": tensor for part, tensors in self.state.items() for key, tensor in tensors.items()}
        save_file(flat, folder / "adapter.safetensors")
        self.adapter = Adapter.load(folder / "adapter.safetensors")
        self.nets = ControlNets(lambda: [folder])
        self.features = torch.randn(4, 48, generator=g)
        self.tokens = torch.cat([self.adapter.tokens(f[None]) for f in self.features])
        self.x = torch.randn(4, 4, *size, generator=g)
        self.text = torch.randn(4, 7, CONTEXT, generator=g)
        self.t = torch.tensor([500, 500, 500, 500])
        self.added = None
        if "addition_embed_type" in config:
            ids = torch.randint(0, 1024, (4, 6), generator=g)
            self.added = {"text_embeds": torch.randn(4, POOLED, generator=g), "time_ids": ids}
        self.hints = [Noise(1), Noise(2)]
        pictures = [torch.from_numpy(h.at((8 * size[0], 8 * size[1]), None)).permute(2, 0, 1) / 255 for h in self.hints]
        self.pictures = torch.stack([pictures[s // 2] for s in SETS])

    def prompt(self, **more) -> ImagePrompt:
        found = self.nets.find("control", CONTEXT)
        pose = Control(self.nets, found.path, found.spec, self.hints, POSE, Timing())
        return ImagePrompt(self.adapter, self.tokens, torch.ones(4), STRENGTH, beside=pose, **more)

    def part(self, rows) -> dict:
        return {"added_cond_kwargs": {k: v[rows] for k, v in self.added.items()}} if self.added else {}

    def ours(self, chunks) -> Tensor:
        session = Session([self.prompt()])
        with session.attached(self.unet):
            session.begin_step(SETS, 0.0)
            return torch.cat([self.unet(self.x[c], self.t[c], self.text[c], **self.part(c)).sample for c in chunks])

    def theirs(self, pose: float = POSE) -> Tensor:
        """InstantID's pipeline: the ControlNet attends to the image tokens, the UNet to both."""
        tokens = self.tokens[SETS]
        down, middle = self.control(
            self.x, self.t, tokens, self.pictures, pose, return_dict=False, added_cond_kwargs=self.added
        )
        self.unet._load_ip_adapter_weights([self.state])
        for processor in self.unet.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [STRENGTH]
        added = {**(self.added or {}), "image_embeds": [self.features[SETS][:, None]]}
        more = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle} if pose else {}
        return self.unet(self.x, self.t, self.text, added_cond_kwargs=added, **more).sample


@pytest.mark.parametrize(
    ("config", "size"),
    [*((SD1, size) for size in GEOMETRIES), (LABELLED, (24, 8))],
    ids=[*(f"sd1-{size}" for size in GEOMETRIES), "sdxl"],
)
def test_a_whole_step_of_instant_id(config, size, tmp_path):
    world = World(config, tmp_path, size)
    base = world.unet(world.x, world.t, world.text, **world.part(slice(None))).sample
    batched = world.ours([[0, 1, 2, 3]])
    split = world.ours([[0, 1], [2, 3]])
    one_by_one = world.ours([[0], [1], [2], [3]])
    assert torch.equal(world.unet(world.x, world.t, world.text, **world.part(slice(None))).sample, base)
    reference = world.theirs()
    effect = relative(world.theirs(0.0), reference)
    errors = [relative(mine, reference) for mine in (batched, split, one_by_one)]
    print(f"\nUNet call with a ControlNet: relative errors {max(errors):.1e}, effect of the ControlNet {effect:.2f}")
    assert effect > 0.01
    assert max(errors) <= TOLERANCE


def test_a_region_masks_what_is_added(tmp_path):
    """Black all over: as without the ControlNet and the adapter; the halves differ from the whole."""
    world = World(SD1, tmp_path, (16, 16))
    base = world.unet(world.x, world.t, world.text).sample

    def drawn(mask: Tensor) -> Tensor:
        session = Session([world.prompt(region=Region(mask))])
        with session.attached(world.unet):
            session.begin_step(SETS, 0.0, size=(16, 16))
            return world.unet(world.x, world.t, world.text).sample

    half = torch.zeros(16, 16)
    half[:, :8] = 1
    assert relative(drawn(torch.zeros(16, 16)), base) < 1e-6
    assert relative(drawn(torch.ones(16, 16)), world.ours([[0, 1, 2, 3]])) < 1e-6
    assert relative(drawn(half), world.ours([[0, 1, 2, 3]])) > 1e-3


@pytest.mark.parametrize("levels", [(1, 2, 4, 4), (1, 2, 4)], ids=["sd1", "sdxl's blocks"])
def test_ldm_unet(levels, tmp_path):
    """On ldm's UNet the blocks get what diffusers' blocks get: converted weights, the same picture."""
    openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason="ldm is not installed")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    torch.manual_seed(0)
    ldm = openaimodel.UNetModel(
        image_size=8, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=2, channel_mult=levels,
        attention_resolutions=[4, 2, 1] if len(levels) == 4 else [4, 2], num_heads=8, use_spatial_transformer=True,
        transformer_depth=1, context_dim=CONTEXT, use_checkpoint=False, legacy=False,
    )  # fmt: skip
    for parameter in ldm.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    ldm.eval().requires_grad_(False)
    config = SD1 if len(levels) == 4 else {**SDXL, "transformer_layers_per_block": 1, "attention_head_dim": 8,
                                           "use_linear_projection": False}  # fmt: skip
    world = World(config, tmp_path, (16, 24))
    checkpoint = {f"model.diffusion_model.{key}": value for key, value in ldm.state_dict().items()}
    world.unet.load_state_dict(convert_ldm_unet_checkpoint(checkpoint, world.unet.config))
    base = ldm(world.x, world.t, context=world.text)
    assert relative(base, world.unet(world.x, world.t, world.text).sample) <= TOLERANCE
    session = Session([world.prompt()])
    with session.attached(ldm):
        session.begin_step(SETS, 0.0)
        mine = ldm(world.x, world.t, context=world.text)
    assert torch.equal(ldm(world.x, world.t, context=world.text), base)
    error = relative(mine, world.theirs())
    print(f"\nldm with a ControlNet against diffusers: {error:.1e}")
    assert error <= TOLERANCE


def test_a_file_with_ldms_names_is_the_same_network(tmp_path):
    """The same weights under ldm's and cldm's names, as diffusers' own converter renames them back."""
    openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason="ldm is not installed")
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    torch.manual_seed(0)
    ldm = openaimodel.UNetModel(
        image_size=8, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=2, channel_mult=(1, 2, 4, 4),
        attention_resolutions=[4, 2, 1], num_heads=8, use_spatial_transformer=True, transformer_depth=1,
        context_dim=CONTEXT, use_checkpoint=False, legacy=False,
    )  # fmt: skip
    tensors = ldm_control(ldm.state_dict())
    save_file({f"control_model.{k}": v.contiguous() for k, v in tensors.items()}, tmp_path / "cldm.safetensors")
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "bare.safetensors")
    channels = (16, 32, 48, 64)
    theirs = diffusers.ControlNetModel.from_unet(small(SD1), conditioning_embedding_out_channels=channels)
    converted = convert_controlnet_checkpoint({f"control_model.{k}": v for k, v in tensors.items()}, theirs.config)
    theirs.load_state_dict(converted)
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "diffusers.safetensors")
    nets = ControlNets(lambda: [tmp_path])
    states = [nets.load(nets.find(name, CONTEXT).path).network.state_dict() for name in nets.names()]
    assert sorted(nets.names()) == ["bare", "cldm", "diffusers"]
    assert all(state.keys() == states[0].keys() for state in states)
    assert all(torch.equal(state[key], states[0][key]) for state in states for key in state)


def test_the_published_file_s_size():
    """A ControlNet of SDXL with all of its keys, as diffusers builds one: InstantID's file in half precision has as
    many bytes, 2,502,139,136, less its header."""
    from lib_ipadapter.controlnet.layout import control_spec, standard_keys
    from lib_ipadapter.controlnet.network import ControlNet

    with torch.device("meta"):
        theirs = diffusers.ControlNetModel(
            block_out_channels=(320, 640, 1280), down_block_types=SDXL["down_block_types"], cross_attention_dim=2048,
            transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
        own = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
        shapes = {key: own[name] for key, name in standard_keys(own).items()}
        network = ControlNet(shapes)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == shapes
    assert len(shapes) == len(own)
    header = 2_502_139_136 - 2 * sum(value.numel() for value in network.state_dict().values())
    print(f"\nheader of {header} bytes")
    assert 50_000 < header < 300_000
    spec = control_spec(shapes)
    assert (spec.context, spec.label, spec.channels) == (2048, 2816, 4)
    assert spec.widths == (640,) * 4 + (1280,) * 20 + (1280,) * 10
