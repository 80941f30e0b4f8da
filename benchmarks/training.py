"""Time and memory of a training step, against the plain loop over diffusers' IP-Adapter processors.

    python benchmarks/training.py [--device cuda] [--precision bf16] [--channels 320] [--side 64] [--batch 2]

Both train the same base adapter on the same frozen diffusers UNet (SD1.5's layout; --channels 320 is its
width) from the same latents, text tokens and image features, with AdamW: forward, backward, step. Losses
must agree first. Time: rounds alternate, and each one's is its fastest; the parts are the fastest of each, so
their sum may be less. Beside them the base's forward alone, without gradients. Memory: the peak of all tensors
above what the models take, as the allocator counts them, each in a process of its own. Needs diffusers.
With --compile ours is also timed over a compiled copy of the UNet, and after how many steps compiling it has paid.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, not installed

from benchmarks.bare import Bare
from lib_ipadapter.adapters.projection import LinearProjection
from lib_ipadapter.training.adapter import TrainableAdapter
from lib_ipadapter.training.base import Sizes, Text
from lib_ipadapter.training.compiled import compile_blocks
from lib_ipadapter.training.objective import Denoiser

CONTEXT, EMBED, TOKENS = 768, 1024, 4
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PARTS = ("forward", "backward", "optimizer")


class OfDiffusers(Bare):
    """diffusers' UNet."""

    def __init__(self, unet: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.unet, self.device, self.dtype = unet, device, dtype

    def _call(self, x: Tensor, t: Tensor, text: Text, sizes: Sizes | None) -> Tensor:
        return self.unet(x, t, text.tokens.to(self.stored)).sample

    def checkpoint_gradients(self) -> None:
        self.unet.enable_gradient_checkpointing()


def make_unet(args: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    channels = args.channels
    unet = UNet2DConditionModel(
        block_out_channels=(channels, 2 * channels, 4 * channels, 4 * channels), attention_head_dim=8,
        cross_attention_dim=CONTEXT, norm_num_groups=32,
    )  # fmt: skip
    return unet.to(args.device).eval().requires_grad_(False)


class Plain(nn.Module):
    """The loop that one writes over diffusers: its processors' own layers are what is trained."""

    def __init__(self, unet: Any, base: Bare) -> None:
        super().__init__()
        self.projection = LinearProjection(EMBED, TOKENS, CONTEXT)
        processors: dict[str, Any] = {}
        for name in unet.attn_processors:
            layer = unet.get_submodule(name.removesuffix(".processor"))
            if name.endswith("attn1.processor"):
                processors[name] = AttnProcessor2_0()
                continue
            processors[name] = IPAdapterAttnProcessor2_0(layer.inner_dim, CONTEXT, (TOKENS,), 1.0)
            processors[name].to_k_ip[0].weight.data.copy_(layer.to_k.weight)
            processors[name].to_v_ip[0].weight.data.copy_(layer.to_v.weight)
        self.processors, self._base = processors, base
        self.layers = nn.ModuleList([p for p in processors.values() if isinstance(p, nn.Module)])

    def use(self) -> None:
        self._base.unet.set_attn_processor(dict(self.processors))

    def forward(self, x: Tensor, t: Tensor, text: Text, sizes: None, features: Tensor) -> Tensor:
        tokens = self.projection(features)
        with self._base._autocast():
            output = self._base.unet(x.to(self._base.stored), t, (text.tokens.to(self._base.stored), [tokens])).sample
        return output.float()


class Ours(nn.Module):
    """lib_ipadapter's."""

    def __init__(self, unet: Any, base: Bare) -> None:
        super().__init__()
        pairs = [(layer.module.to_k.weight, layer.module.to_v.weight) for layer in base.layers]
        self.adapter = TrainableAdapter(LinearProjection(EMBED, TOKENS, CONTEXT), pairs)
        self._base = base
        self._denoiser: Denoiser | None = None

    def use(self) -> None:
        self._base.unet.set_attn_processor(AttnProcessor2_0())
        self._denoiser = Denoiser(self._base, self.adapter, concat=False)

    def forward(self, *inputs: Any) -> Tensor:
        return self._denoiser(*inputs)

    def rest(self) -> None:
        self._denoiser.remove()


Step = Callable[..., float]


def contestant(name: str, args: argparse.Namespace, unet: Any) -> Step:
    """Its step, which tells when each of PARTS ends, and returns the loss."""
    base = OfDiffusers(unet, torch.device(args.device), DTYPES[args.precision])
    torch.manual_seed(1)
    model = {"ours": Ours, "plain": Plain}[name](unet, base).to(args.device)
    draw = torch.Generator().manual_seed(2)
    x, target = (torch.randn(args.batch, 4, args.side, args.side, generator=draw).to(args.device) for _ in range(2))
    text = Text(torch.randn(args.batch, 77, CONTEXT, generator=draw).to(args.device))
    features = torch.randn(args.batch, EMBED, generator=draw).to(args.device)
    times = torch.randint(0, 1000, (args.batch,), generator=draw).to(args.device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(ended: Callable[[str], None] = lambda part: None) -> float:
        model.use()
        loss = F.mse_loss(model(x, times, text, None, features), target)
        ended("forward")
        loss.backward()
        ended("backward")
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(model, Ours):
            model.rest()
        ended("optimizer")
        return float(loss.detach())

    return step


def alone(args: argparse.Namespace, unet: Any) -> Step:
    """The base's forward without an adapter and without gradients."""
    base = OfDiffusers(unet, torch.device(args.device), DTYPES[args.precision])
    x = torch.randn(args.batch, 4, args.side, args.side, device=args.device)
    text = Text(torch.randn(args.batch, 77, CONTEXT, device=args.device))
    t = torch.full((args.batch,), 500, device=args.device)

    def step(ended: Callable[[str], None]) -> float:
        unet.set_attn_processor(AttnProcessor2_0())
        with torch.no_grad():
            base.predict(x, t, text)
        ended("forward")
        return 0.0

    return step


def peak(name: str, args: argparse.Namespace) -> float:
    """MiB of tensors above what is there before the first step."""
    step = contestant(name, args, make_unet(args))
    if args.device == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            step()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        for _ in range(2):  # the second has the optimizer's state from the first
            step()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns() if hasattr(event, "start_ns") else event.start_us())
    return max(accumulate(event.nbytes() for event in events)) / 2**20


def times(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds of a step and of its parts, each the fastest of the rounds. The first losses must agree."""
    unet = make_unet(args)
    steps = {name: contestant(name, args, unet) for name in ("plain", "ours")}
    first = {name: step() for name, step in steps.items()}
    if abs(first["ours"] - first["plain"]) > (1e-4 if args.precision == "no" else 2e-2) * first["plain"]:
        raise SystemExit(f"the losses differ: {first}")
    steps["base"] = alone(args, unet)
    begun = time.perf_counter()
    if args.compile:
        compiled = make_unet(args)
        compile_blocks(compiled, torch.device(args.device))
        steps["compiled"] = contestant("ours", args, compiled)
        first["compiled"] = steps["compiled"]()
        if abs(first["compiled"] - first["ours"]) > 1e-2 * first["ours"]:
            raise SystemExit(f"the losses differ: {first}")
    took = time.perf_counter() - begun
    found = {name: dict.fromkeys(("step", *PARTS), math.inf) for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            for part, seconds in timed(step, args.device).items():
                found[name][part] = min(found[name][part], seconds)
    found["compiling"] = {"step": took}
    return found


def timed(step: Step, device: str) -> dict[str, float]:
    took: dict[str, float] = {}
    begun = last = time.perf_counter()

    def ended(part: str) -> None:
        nonlocal last
        if device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        took[part], last = now - last, now

    step(ended)
    return {"step": last - begun, **took}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--channels", type=int, default=320)
    parser.add_argument("--side", type=int, default=32, help="of the latents")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=16, help="fewer differ by hundredths")
    parser.add_argument("--compile", action="store_true", help="also over a compiled copy of the UNet")
    parser.add_argument("--peak", choices=("ours", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.peak:
        print(json.dumps(peak(args.peak, args)))
        return
    seconds = times(args)
    command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)]
    memory = {
        name: json.loads(subprocess.run([*command, "--peak", name], check=True, capture_output=True, text=True).stdout)
        for name in ("plain", "ours")
    }
    print("| | plain loop | ours | ours / plain |\n|---|---|---|---|")
    rows = {f"seconds, {part}": (seconds["plain"][part], seconds["ours"][part]) for part in ("step", *PARTS)}
    rows["peak MiB above the models"] = memory["plain"], memory["ours"]
    for what, (plain, ours) in rows.items():
        print(f"| {what} | {plain:.4g} | {ours:.4g} | {ours / plain:.3f} |")
    if args.compile:
        plain, compiled, took = (seconds[name]["step"] for name in ("ours", "compiled", "compiling"))
        won = f"pays after {took / (plain - compiled):.0f} steps" if compiled < plain else "never pays"
        print(
            f"\nCompiled: {compiled:.4g} s a step, {compiled / plain:.3f} of ours; compiling took {took:.0f} s: {won}."
        )
    print(f"\nThe base's forward alone, without gradients: {seconds['base']['forward']:.3g} s.")


if __name__ == "__main__":
    main()
