"""The layer order of adapter files, against the tables that the published adapters follow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.session import COND, UNCOND, Session
from lib_ipadapter.errors import UnsupportedModel
from tests.tiny import CONTEXT, UNet, inputs, prompt


def transformer(width: int, depth: int, context: int) -> nn.Module:
    def attention(ctx: int) -> nn.Module:
        module = nn.Module()
        module.to_q = nn.Linear(width, width, device="meta")
        module.to_k = nn.Linear(ctx, width, device="meta")
        module.to_out = nn.Sequential(nn.Linear(width, width, device="meta"))
        module.heads = 8
        return module

    blocks = nn.ModuleList()
    for _ in range(depth):
        block = nn.Module()
        block.attn1, block.attn2 = attention(width), attention(context)
        blocks.append(block)
    module = nn.Module()
    module.transformer_blocks = blocks
    return nn.ModuleList([nn.Identity(), module])


def ldm_like(inputs: dict, outputs: dict, middle: tuple, context: int) -> nn.Module:
    def part(table: dict) -> nn.ModuleList:
        return nn.ModuleList(
            transformer(*table[i], context) if i in table else nn.Identity() for i in range(max(table) + 1)
        )

    unet = nn.Module()
    # The order in which ldm and sgm register them.
    unet.input_blocks, unet.middle_block = part(inputs), transformer(*middle, context)
    unet.output_blocks = part(outputs)
    return unet


SD1 = ldm_like(
    {1: (320, 1), 2: (320, 1), 4: (640, 1), 5: (640, 1), 7: (1280, 1), 8: (1280, 1)},
    {3: (1280, 1), 4: (1280, 1), 5: (1280, 1), 6: (640, 1), 7: (640, 1), 8: (640, 1)}
    | {9: (320, 1), 10: (320, 1), 11: (320, 1)},
    (1280, 1),
    768,
)
SDXL = ldm_like(
    {4: (640, 2), 5: (640, 2), 7: (1280, 10), 8: (1280, 10)},
    {0: (1280, 10), 1: (1280, 10), 2: (1280, 10), 3: (640, 2), 4: (640, 2), 5: (640, 2)},
    (1280, 10),
    2048,
)
# (module, N, width) of facts on adapter files.
SD1_TABLE = [
    ("input_blocks.1", 1, 320), ("input_blocks.2", 3, 320), ("input_blocks.4", 5, 640), ("input_blocks.5", 7, 640),
    ("input_blocks.7", 9, 1280), ("input_blocks.8", 11, 1280), ("output_blocks.3", 13, 1280),
    ("output_blocks.4", 15, 1280), ("output_blocks.5", 17, 1280), ("output_blocks.6", 19, 640),
    ("output_blocks.7", 21, 640), ("output_blocks.8", 23, 640), ("output_blocks.9", 25, 320),
    ("output_blocks.10", 27, 320), ("output_blocks.11", 29, 320), ("middle_block", 31, 1280),
]  # fmt: skip


def test_sd1_has_the_16_layers_of_the_table():
    layers = cross_attention_layers(SD1)
    found = [(layer.name.split(".1.transformer_blocks.0")[0], layer.number, layer.width) for layer in layers]
    assert found == SD1_TABLE
    assert {layer.context for layer in layers} == {768}


SDXL_STARTS = {
    "input_blocks.4": (1, 2, 640), "input_blocks.5": (5, 2, 640), "input_blocks.7": (9, 10, 1280),
    "input_blocks.8": (29, 10, 1280), "output_blocks.0": (49, 10, 1280), "output_blocks.1": (69, 10, 1280),
    "output_blocks.2": (89, 10, 1280), "output_blocks.3": (109, 2, 640), "output_blocks.4": (113, 2, 640),
    "output_blocks.5": (117, 2, 640), "middle_block": (121, 10, 1280),
}  # fmt: skip


def test_sdxl_has_the_70_layers_of_the_table():
    expected = {
        f"{name}.1.transformer_blocks.{m}.attn2": (first + 2 * m, width)
        for name, (first, depth, width) in SDXL_STARTS.items()
        for m in range(depth)
    }
    layers = cross_attention_layers(SDXL)
    assert {layer.name: (layer.number, layer.width) for layer in layers} == expected
    assert len(layers) == 70
    assert layers[-1].number == 139


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 0, 2), (2, 4, 3)])
def test_any_depth_counts_down_up_middle(shape):
    n_in, n_mid, n_out = shape
    parts = [layer.part for layer in cross_attention_layers(UNet(per_part=shape))]
    assert parts == ["input"] * n_in + ["output"] * n_out + ["middle"] * n_mid


def test_the_parts_are_those_of_diffusers_names_too():
    ldm, diffusers = UNet(per_part=(2, 1, 3)), nn.Module()
    diffusers.down_blocks, diffusers.up_blocks = ldm.input_blocks, ldm.output_blocks
    diffusers.mid_block = ldm.middle_block
    layers = cross_attention_layers(diffusers)
    assert [layer.part for layer in layers] == [layer.part for layer in cross_attention_layers(ldm)]
    assert [layer.name.partition(".")[0] for layer in layers] == [
        *["down_blocks"] * 2, *["up_blocks"] * 3, "mid_block",
    ]  # fmt: skip


class Packed(nn.Module):
    """A Linear as Forge makes it for GGUF and NF4 (backend/operations.py): no in_features or out_features, and a weight
    whose shape is that of the packed bytes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().view(torch.uint8).reshape(-1, 1), requires_grad=False)
        self.bias = linear.bias
        self._shape = linear.weight.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.view(-1).view(torch.float32).reshape(self._shape)
        return nn.functional.linear(x, weight, self.bias)


def pack(unet: UNet, config: object) -> None:
    """Every Linear packed, as Forge's loader does it."""
    unet.config = config
    for module in list(unet.modules()):
        if hasattr(module, "to_q"):
            module.dim_head = module.to_q.out_features // module.heads
            module.to_q, module.to_k, module.to_v = map(Packed, (module.to_q, module.to_k, module.to_v))
            module.to_out[0] = Packed(module.to_out[0])


@pytest.mark.parametrize("config", [{"context_dim": CONTEXT}, SimpleNamespace(context_dim=CONTEXT)], ids=type)
@pytest.mark.parametrize("rank", [0, 3], ids=["plain", "lora"])
def test_quantised_weights_do_not_hide_the_widths(config, rank):
    torch.manual_seed(0)
    unet = UNet()
    x, context = inputs(2)
    given = prompt(unet, rank=rank)
    plain = [(layer.width, layer.context) for layer in cross_attention_layers(unet)]

    def drawn() -> torch.Tensor:
        session = Session([given])
        with torch.no_grad(), session.attached(unet):
            session.begin_step([COND, UNCOND], 0.0)
            return unet(x, None, context)

    expected = drawn()
    with torch.no_grad():
        base = unet(x, None, context)
    pack(unet, config)
    assert [(layer.width, layer.context) for layer in cross_attention_layers(unet)] == plain
    assert torch.equal(drawn(), expected)
    assert not torch.allclose(expected, base, atol=1e-2)


def test_quantised_weights_without_a_config_are_refused():
    unet = UNet()
    pack(unet, None)
    with pytest.raises(UnsupportedModel, match="Packed does not tell how wide the model's text tokens are"):
        cross_attention_layers(unet)
