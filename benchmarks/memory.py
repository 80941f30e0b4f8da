"""What a training step holds in memory at its peak, by setting: computed, not measured.

    python benchmarks/memory.py [--base sd15|sdxl] [--resolution 512] [--batch 1]

Everything is made on the meta device in its real shape, bfloat16 as on a GPU: the frozen UNet, the base adapter with
its gradients and the optimizer's state, and what a forward pass keeps for the backward pass (each tensor once, found by
torch's saved-tensor hooks). Models whose output is not cached are added. Work space of kernels, the allocator's slack
and the context of CUDA are not in it. Needs stable-diffusion-sdkit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, not installed

from benchmarks.bare import Bare
from benchmarks.scale import unet_of
from lib_ipadapter.adapters.projection import LinearProjection
from lib_ipadapter.training.adapter import TrainableAdapter
from lib_ipadapter.training.base import Sizes, Text, checkpointed_blocks
from lib_ipadapter.training.objective import Denoiser
from lib_ipadapter.training.storage import store

GB = 1e9
# Parameters (millions) of the models beside the UNet, in float32: autoencoder, CLIP-L or both of SDXL's towers, ViT-H
BESIDE = {"sd15": (84, 123, 632), "sdxl": (84, 123 + 695, 632)}
STATE = {"adamw": 8, "adamw8bit": 2}  # bytes a parameter


class OnMeta(Bare):
    """A UNet on the meta device that computes in bfloat16."""

    def __init__(self, unet: Any, adm: int) -> None:
        self.unet, self.adm = unet, adm
        self.device, self.dtype, self.sdxl = torch.device("meta"), torch.float32, False

    def _call(self, x: Tensor, t: Tensor, text: Text, sizes: Sizes | None) -> Tensor:
        own = {"y": torch.empty(len(x), self.adm, device="meta", dtype=torch.bfloat16)} if self.adm else {}
        output: Tensor = self.unet(x.bfloat16(), t, context=text.tokens.bfloat16(), **own)
        return output


class Kept:
    """What is kept for the backward pass, each tensor once. Of blocks that are checkpointed the inputs are kept, and
    what the largest of them keeps while it is computed again (torch's checkpointing runs on no meta device)."""

    def __init__(self, weights: set[int]) -> None:
        self.weights = weights
        self.outside: dict[int, Tensor] = {}
        self.blocks: list[dict[int, Tensor]] = []
        self.now = self.outside

    def keep(self, tensor: Tensor) -> Tensor:
        """The hook of torch."""
        root = tensor._base if tensor._base is not None else tensor
        if id(root) not in self.weights:
            self.now[id(root)] = root  # held, so that no other gets its id
        return tensor

    def block(self, module: Any) -> None:
        """The module is checkpointed."""
        plain = module.forward

        def forward(*inputs: Tensor) -> Tensor:
            for tensor in inputs:
                self.keep(tensor)
            own: dict[int, Tensor] = {}
            self.blocks.append(own)
            self.now = own
            output: Tensor = plain(*inputs)
            self.now = self.outside
            return output

        module.forward = forward

    @property
    def bytes(self) -> int:
        """Of both."""

        def of(tensors: dict[int, Tensor]) -> int:
            return sum(t.numel() * t.element_size() for t in tensors.values())

        return of(self.outside) + max(map(of, self.blocks), default=0)


def kept_bytes(base: str, resolution: int, batch: int, checkpointing: bool, storage: str) -> tuple[int, int, int]:
    """(bytes of the frozen UNet, parameters of the adapter, bytes that a forward pass keeps)."""
    unet = unet_of(base).to(torch.bfloat16).requires_grad_(False)
    unet.dtype = torch.bfloat16
    time_embed = unet.time_embed.forward
    unet.time_embed.forward = lambda x: time_embed(x.bfloat16())  # as autocast does
    bare = OnMeta(unet, 2816 if base == "sdxl" else 0)
    layers = bare.layers
    context = layers[0].context
    with torch.device("meta"):
        pairs = [(torch.empty(x.width, context), torch.empty(x.width, context)) for x in layers]
        adapter = TrainableAdapter(LinearProjection(1024, 4, context), pairs)
    if storage != "auto":
        store(unet, storage)
    weights = {id(p) for p in [*unet.parameters(), *unet.buffers(), *adapter.parameters()]}
    kept = Kept(weights)
    if checkpointing:
        for module in checkpointed_blocks(unet):
            kept.block(module)

    denoiser = Denoiser(bare, adapter, concat=False)
    with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
        denoiser(
            torch.empty(batch, 4, resolution // 8, resolution // 8, device="meta"), torch.zeros(batch, device="meta"),
            Text(torch.empty(batch, 77, context, device="meta")), None, torch.empty(batch, 1024, device="meta"),
        )  # fmt: skip
    denoiser.remove()
    frozen = sum(p.numel() * p.element_size() for p in unet.parameters())
    parameters = sum(p.numel() for p in adapter.parameters())
    return frozen, parameters, kept.bytes


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="sd15", choices=tuple(BESIDE))
    parser.add_argument("--resolution", type=int, help="512, of sdxl 1024")
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args(argv)
    resolution = args.resolution or (1024 if args.base == "sdxl" else 512)
    print(f"{args.base}, {resolution} pixels, batch {args.batch}, bf16, base adapter; computed, without work space\n")
    print(
        "| checkpointing | storage | optimizer | UNet | adapter, gradients, optimizer | activations | all cached | "
        "nothing cached |\n|---|---|---|---|---|---|---|---|"
    )
    beside = sum(BESIDE[args.base]) * 1e6 * 4
    for checkpointing in (False, True):
        for storage, optimizer in (("auto", "adamw"), ("fp8", "adamw8bit")):
            with contextlib.redirect_stdout(io.StringIO()):
                frozen, parameters, kept = kept_bytes(args.base, resolution, args.batch, checkpointing, storage)
            own = parameters * (8 + STATE[optimizer])
            total = frozen + own + kept
            settings = f"{'yes' if checkpointing else 'no'} | {storage} | {optimizer}"
            parts = " | ".join(f"{size / GB:.2f}" for size in (frozen, own, kept))
            print(f"| {settings} | {parts} | **{total / GB:.1f} GB** | {(total + beside) / GB:.1f} GB |")


if __name__ == "__main__":
    main()
