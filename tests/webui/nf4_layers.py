"""An image prompt on layers that Forge makes for NF4. Run with Forge's own Python, in its folder: python nf4_layers.py
REPOSITORY."""

# ruff: noqa: E402

import sys

repository = sys.argv[1]
sys.argv[1:] = ["--always-cpu", "--all-in-fp32"]  # Forge's own, which it reads when it is imported
sys.path[:0] = [repository, "packages_3rdparty", "."]

import bitsandbytes
import torch
from backend.operations import using_forge_operations

from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.session import COND, UNCOND, Session
from tests.tiny import CONTEXT, Attention, UNet, inputs, prompt

torch.manual_seed(0)
plain = UNet(width=64)
with using_forge_operations(device=torch.device("cpu"), dtype=torch.float32, bnb_dtype="nf4"):
    packed = UNet(width=64)
state, rounded = {}, {}
for name, value in plain.state_dict().items():
    state[name] = rounded[name] = value
    if value.ndim == 2:
        data, quant = bitsandbytes.functional.quantize_4bit(value, blocksize=64, quant_type="nf4")
        state[name] = data
        state |= {f"{name}.{key}": part for key, part in quant.as_dict(packed=True).items()}
        rounded[name] = bitsandbytes.functional.dequantize_4bit(data, quant)
given = prompt(plain)
widths = [(layer.width, layer.context) for layer in cross_attention_layers(plain)]
plain.load_state_dict(rounded)
packed.load_state_dict(state, strict=False)
packed.config = {"context_dim": CONTEXT}
for module in packed.modules():
    if isinstance(module, Attention):
        module.dim_head = 64 // module.heads
        assert not hasattr(module.to_q, "out_features"), type(module.to_q)
assert [(layer.width, layer.context) for layer in cross_attention_layers(packed)] == widths
x, context = inputs(2, width=64)
with torch.no_grad():
    drawn = []
    for unet in (plain, packed):
        session = Session([given])
        with session.attached(unet):
            session.begin_step([COND, UNCOND], 0.0)
            drawn.append(unet(x, None, context))
        drawn.append(unet(x, None, context))
assert torch.allclose(drawn[0], drawn[2], atol=1e-4), (drawn[0] - drawn[2]).abs().max()
assert torch.allclose(drawn[1], drawn[3], atol=1e-4)
assert (drawn[0] - drawn[1]).abs().max() > 0.1
print("nf4", type(packed.input_blocks[0].attn2.to_q).__mro__[1].__name__)
