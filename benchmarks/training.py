"""Time and memory of a training step, against the plain loop over diffusers' IP-Adapter processors.

    python benchmarks/training.py [--device cuda] [--precision bf16] [--channels 320] [--side 64] [--batch 2]

Both train the same base adapter on the same frozen diffusers UNet (SD1.5's layout; --channels 320 is its
width) from the same latents, text tokens and image features, with AdamW: forward, backward, step. Losses
must agree first. Time: rounds alternate, and each one's is its fastest. Memory: the peak above what the
models take, each in a process of its own. Needs diffusers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from torch import Tensor, nn

from lib_ipadapter.projection import LinearProjection
from lib_ipadapter.training.adapter import TrainableAdapter
from lib_ipadapter.training.base import Base, Sizes, Text
from lib_ipadapter.training.objective import Denoiser

CONTEXT, EMBED, TOKENS = 768, 1024, 4


class Bare(Base):
    """A UNet and nothing else."""

    def __init__(self, unet: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.unet, self.device, self.dtype = unet, device, dtype

    def _call(self, x: Tensor, t: Tensor, text: Text, sizes: Sizes | None) -> Tensor:
        return self.unet(x, t, text.tokens.to(self.stored)).sample

    def moments(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    decode = text = moments

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
            output = self._base.unet(
                x.to(self._base.stored), t, (text.tokens.to(self._base.stored), [tokens])
            ).sample
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


def contestant(name: str, args: argparse.Namespace, unet: Any) -> tuple[Callable[[], float], nn.Module]:
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.precision]
    base = Bare(unet, torch.device(args.device), dtype)
    torch.manual_seed(1)
    model = {"ours": Ours, "plain": Plain}[name](unet, base).to(args.device)
    draw = torch.Generator().manual_seed(2)
    x, target = (
        torch.randn(args.batch, 4, args.side, args.side, generator=draw).to(args.device) for _ in range(2)
    )
    text = Text(torch.randn(args.batch, 77, CONTEXT, generator=draw).to(args.device))
    features = torch.randn(args.batch, EMBED, generator=draw).to(args.device)
    times = torch.randint(0, 1000, (args.batch,), generator=draw).to(args.device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> float:
        model.use()
        loss = F.mse_loss(model(x, times, text, None, features), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(model, Ours):
            model.rest()
        return float(loss.detach())

    return step, model


def peak(name: str, args: argparse.Namespace) -> float:
    """MiB above what is there before the first step; on the CPU by Linux's own count."""
    step, _ = contestant(name, args, make_unet(args))
    if args.device == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        held = status("VmRSS")
    for _ in range(3):
        step()
    top = torch.cuda.max_memory_allocated() if args.device == "cuda" else status("VmHWM")
    return (top - held) / 2**20


def status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def times(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step, the fastest of the rounds. The first losses must agree."""
    unet = make_unet(args)
    steps = {name: contestant(name, args, unet)[0] for name in ("plain", "ours")}
    first = {name: step() for name, step in steps.items()}
    if abs(first["ours"] - first["plain"]) > (1e-4 if args.precision == "no" else 2e-2) * first["plain"]:
        raise SystemExit(f"the losses differ: {first}")
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if args.device == "cuda":
                torch.cuda.synchronize()
            found[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in found.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--channels", type=int, default=320)
    parser.add_argument("--side", type=int, default=32, help="of the latents")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=("ours", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.peak:
        print(json.dumps(peak(args.peak, args)))
        return
    seconds = times(args)
    command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)]
    memory = {
        name: json.loads(
            subprocess.run([*command, "--peak", name], check=True, capture_output=True, text=True).stdout
        )
        for name in ("plain", "ours")
    }
    print("| | plain loop | ours | ours / plain |\n|---|---|---|---|")
    for what, values in (("seconds a step", seconds), ("peak MiB above the models", memory)):
        print(
            f"| {what} | {values['plain']:.3g} | {values['ours']:.3g} | {values['ours'] / values['plain']:.2f} |"
        )


if __name__ == "__main__":
    main()
