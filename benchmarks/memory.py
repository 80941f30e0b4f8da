"""What a training step holds in memory at its peak, by setting: computed, not measured.

    python benchmarks/memory.py [--base sd15|sdxl] [--resolution 512] [--batch 1]
    python benchmarks/memory.py --measure [--channels 320] [--resolution 256]     SD1.5's UNet on the CPU, both ways

Everything is made on the meta device in its real shape, bfloat16 as on a GPU: the frozen UNet, the base adapter with
its gradients and the optimizer's state, and what a forward pass keeps for the backward pass (each tensor once, found by
torch's saved-tensor hooks). Models whose output is not cached are added. Work space of kernels, the allocator's slack
and the context of CUDA are not in it. Needs stable-diffusion-sdkit.

--measure takes real steps on the CPU in float32, and sets the most that torch's allocator held of tensors beside what
is computed for the same step.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

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


class Alone(Bare):
    """A UNet that computes in ``number``, bfloat16 on the meta device. adm: width of its further conditions."""

    def __init__(self, unet: Any, adm: int, device: str = "meta", number: torch.dtype = torch.bfloat16) -> None:
        self.unet, self.adm, self.number = unet, adm, number
        self.device, self.dtype, self.sdxl = torch.device(device), torch.float32, False

    def _call(self, x: Tensor, t: Tensor, text: Text, sizes: Sizes | None) -> Tensor:
        own = {"y": torch.empty(len(x), self.adm, device=self.device, dtype=self.number)} if self.adm else {}
        output: Tensor = self.unet(x.to(self.number), t, context=text.tokens.to(self.number), **own)
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


def adapter_of(bare: Alone) -> TrainableAdapter:
    """A base adapter of the UNet's, on its device."""
    layers = bare.layers
    context = layers[0].context
    with torch.device(bare.device):
        pairs = [(torch.zeros(x.width, context), torch.zeros(x.width, context)) for x in layers]
        return TrainableAdapter(LinearProjection(1024, 4, context), pairs)


def inputs_of(bare: Alone, resolution: int, batch: int) -> tuple[Any, ...]:
    """What a denoiser takes."""
    side, device = resolution // 8, bare.device
    text = Text(torch.zeros(batch, 77, bare.layers[0].context, device=device))
    return (
        torch.zeros(batch, 4, side, side, device=device), torch.zeros(batch, device=device), text, None,
        torch.zeros(batch, 1024, device=device),
    )  # fmt: skip


def kept_bytes(
    base: str, resolution: int, batch: int, checkpointing: bool, storage: str, channels: int = 320,
    number: torch.dtype = torch.bfloat16,
) -> tuple[int, int, int]:  # fmt: skip
    """(bytes of the frozen UNet, parameters of the adapter, bytes that a forward pass keeps)."""
    unet = unet_of(base, channels).to(number).requires_grad_(False)
    unet.dtype = number
    time_embed = unet.time_embed.forward
    unet.time_embed.forward = lambda x: time_embed(x.to(number))  # as autocast does
    bare = Alone(unet, 2816 if base == "sdxl" else 0, number=number)
    adapter = adapter_of(bare)
    if storage != "auto":
        store(unet, storage)
    weights = {id(p) for p in [*unet.parameters(), *unet.buffers(), *adapter.parameters()]}
    kept = Kept(weights)
    if checkpointing:
        for module in checkpointed_blocks(unet):
            kept.block(module)

    denoiser = Denoiser(bare, adapter, concat=False)
    with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
        denoiser(*inputs_of(bare, resolution, batch))
    denoiser.remove()
    frozen = sum(p.numel() * p.element_size() for p in unet.parameters())
    parameters = sum(p.numel() for p in adapter.parameters())
    return frozen, parameters, kept.bytes


def measured_bytes(resolution: int, batch: int, checkpointing: bool, channels: int) -> int:
    """The most that is held of tensors above the UNet in the second of two real steps in float32 on the CPU, of
    SD1.5's UNet. Its weights are zeros, which take as much."""
    unet = unet_of("sd15", channels).to_empty(device="cpu").requires_grad_(False)
    for tensor in (*unet.parameters(), *unet.buffers()):
        tensor.zero_()
    bare = Alone(unet, 0, "cpu", torch.float32)
    for module in checkpointed_blocks(unet) if checkpointing else []:
        module.forward = lambda *x, plain=module.forward: checkpoint(plain, *x, use_reentrant=False)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        adapter = adapter_of(bare)
        denoiser = Denoiser(bare, adapter, concat=False)
        optimizer = torch.optim.AdamW(adapter.parameters())
        for _ in range(2):  # the second has the optimizer's state from the first
            denoiser(*inputs_of(bare, resolution, batch)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns() if hasattr(event, "start_ns") else event.start_us())
    return max(accumulate(event.nbytes() for event in events))


def compare(resolution: int, batch: int, channels: int) -> list[tuple[bool, float, float]]:
    """(checkpointing, computed, measured) of SD1.5's layout in float32 on the CPU, GB above the UNet."""
    rows = []
    for checkpointing in (False, True):
        with contextlib.redirect_stdout(io.StringIO()):
            _, parameters, kept = kept_bytes("sd15", resolution, batch, checkpointing, "auto", channels, torch.float32)
            measured = measured_bytes(resolution, batch, checkpointing, channels)
        rows.append((checkpointing, (parameters * (8 + STATE["adamw"]) + kept) / GB, measured / GB))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="sd15", choices=tuple(BESIDE))
    parser.add_argument("--resolution", type=int, help="512, of sdxl 1024")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--measure", action="store_true", help="also measure, of SD1.5's layout on the CPU")
    parser.add_argument("--channels", type=int, default=320, help="with --measure: width of the UNet's first level")
    args = parser.parse_args(argv)
    if args.measure:
        print("| channels | checkpointing | computed, GB above the UNet | measured | measured / computed |")
        print("|---|---|---|---|---|")
        for checkpointing, computed, measured in compare(args.resolution or 256, args.batch, args.channels):
            told = f"{args.channels} | {'yes' if checkpointing else 'no'}"
            print(f"| {told} | {computed:.3f} | {measured:.3f} | {measured / computed:.2f} |")
        return
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
