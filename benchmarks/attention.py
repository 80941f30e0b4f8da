"""Time that an image prompt adds to the cross-attention of one UNet call, as ratios in one run.

    python benchmarks/attention.py [--device cuda] [--dtype float16] [--rounds 15]

The layers are the real shapes of SD1.5 at 512² and SDXL at 1024², cond and uncond in one batch, on
diffusers' Attention modules, so that the base's time is the same for all. Compared: this package's
Session; diffusers' IP-Adapter processors; the plain formula (K', V' projected at each call, softmax
written out). Rounds of the contestants alternate; each one's time is its fastest round, since whatever
else the machine does only adds. Needs diffusers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, IPAdapterAttnProcessor2_0
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, not installed

from lib_ipadapter.adapters.variant import VariantSpec
from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.session import ImagePrompt, Session

# (tokens of the latent, width, heads, how many layers), and the width of the text tokens
MODELS = {
    "SD1.5 512²": (768, [(4096, 320, 8, 5), (1024, 640, 8, 5), (256, 1280, 8, 5), (64, 1280, 8, 1)]),
    # 10 and 60 in truth: they are alike, so a fifth of each gives the same ratios.
    "SDXL 1024²": (2048, [(4096, 640, 10, 2), (1024, 1280, 20, 12)]),
}
SCALE = 0.8


class Stack(nn.Module):
    """The cross-attention layers of one UNet, and nothing else; all count as the input part."""

    def __init__(self, name: str) -> None:
        super().__init__()
        context, groups = MODELS[name]
        self.context = context
        self.shapes = [(n, width) for n, width, _, count in groups for _ in range(count)]
        self.input_blocks = nn.ModuleList()
        for _, width, heads, count in groups:
            for _ in range(count):
                block = nn.Module()
                block.attn2 = Attention(
                    width, cross_attention_dim=context, heads=heads, dim_head=width // heads,
                    processor=AttnProcessor2_0(),
                )  # fmt: skip
                self.input_blocks.append(block)

    def forward(self, hidden: Tensor, text: Tensor, extra: object = None) -> Tensor:
        context = text if extra is None else (text, extra)
        outputs = []
        for block, (n, width) in zip(self.input_blocks, self.shapes, strict=True):
            outputs.append(block.attn2(hidden[:, :n, :width].contiguous(), context)[:, 0])
        return torch.cat(outputs, dim=1)


class Weights:
    """K', V' weights of an adapter, random."""

    def __init__(self, stack: Stack, tokens: int) -> None:
        layers = cross_attention_layers(stack)
        self.path = Path("random")
        self.spec = VariantSpec(
            "base", "base", "random", "pooled", 1, "", tokens, stack.context, tuple(x.width for x in layers)
        )
        like = next(stack.parameters())
        self._pairs = [
            tuple(torch.randn(x.width, x.context, dtype=like.dtype, device=like.device) * 0.02 for _ in range(2))
            for x in layers
        ]

    def weights(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._pairs[layer]


class PlainProcessor(AttnProcessor2_0):
    """The formula as one would write it down."""

    def __init__(self, pair: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.pair = pair

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        text, image = encoder_hidden_states

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        def attend(k: Tensor, v: Tensor) -> Tensor:
            scores = heads(q) @ heads(k).transpose(-1, -2) / (q.shape[-1] // attn.heads) ** 0.5
            return (scores.softmax(-1) @ heads(v)).transpose(1, 2).flatten(2)

        q = attn.to_q(hidden_states)
        z = F.scaled_dot_product_attention(heads(q), heads(attn.to_k(text)), heads(attn.to_v(text)))
        z = z.transpose(1, 2).flatten(2)
        z = z + SCALE * attend(F.linear(image, self.pair[0]), F.linear(image, self.pair[1]))
        return attn.to_out[1](attn.to_out[0](z))


def diffusers_processors(stack: Stack, weights: Weights, tokens: int) -> list[nn.Module]:
    processors = []
    for i, block in enumerate(stack.input_blocks):
        processor = IPAdapterAttnProcessor2_0(block.attn2.inner_dim, stack.context, (tokens,), SCALE)
        to_k, to_v = weights.weights(i)
        processor.to_k_ip[0].weight.data, processor.to_v_ip[0].weight.data = to_k, to_v
        processors.append(processor)
    return processors


def contestants(stack: Stack, tokens: int, text: Tensor, image: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    weights = Weights(stack, tokens)
    prompt = ImagePrompt(weights, image.float(), torch.ones(tokens, device=image.device), SCALE)  # type: ignore[arg-type]
    session = Session([prompt])
    base = [AttnProcessor2_0()] * len(stack.input_blocks)
    plain = [PlainProcessor(weights.weights(i)) for i in range(len(base))]
    theirs = diffusers_processors(stack, weights, tokens)

    def with_processors(processors, extra):
        def call(hidden: Tensor) -> Tensor:
            for block, processor in zip(stack.input_blocks, processors, strict=True):
                block.attn2.set_processor(processor)
            return stack(hidden, text, extra)

        return call

    base_call = with_processors(base, None)

    def ours(hidden: Tensor) -> Tensor:
        with session.attached(stack):
            session.begin_step([0, 1], 0.0)
            return base_call(hidden)

    return {
        "base": base_call,
        "ours": ours,
        "diffusers": with_processors(theirs, [image]),
        "plain": with_processors(plain, image),
    }


def measure(calls: dict[str, Callable[[Tensor], Tensor]], hidden: Tensor, rounds: int) -> dict[str, float]:
    """Seconds of the base, and the added seconds of each other contestant. They must agree first."""
    reference = calls["plain"](hidden).float()
    for name in ("ours", "diffusers"):
        error = (calls[name](hidden).float() - reference).norm() / reference.norm()
        if error > (1e-4 if hidden.dtype == torch.float32 else 2e-2):
            raise SystemExit(f"{name} does not compute the formula: relative error {error:.1e}")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call(hidden)
            if hidden.is_cuda:
                torch.cuda.synchronize()
            if i > 1:  # the first rounds warm up, and project K' and V'
                times[name].append(time.perf_counter() - start)
    base = min(times.pop("base"))
    return {"base": base, **{name: min(ts) - base for name, ts in times.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", choices=list(MODELS), help="one of the two only")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4, 16, 257])
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    print("| model | tokens | base ms | ours + ms | diffusers + ms | plain + ms | ours / diffusers | ours / plain |")
    print("|---|---|---|---|---|---|---|---|")
    for name in [args.model] if args.model else MODELS:
        stack = Stack(name).to(args.device, dtype).eval().requires_grad_(False)
        for tokens in args.tokens:
            text = torch.randn(2, 77, stack.context, device=args.device, dtype=dtype)
            image = torch.randn(2, tokens, stack.context, device=args.device, dtype=dtype)
            hidden = torch.randn(2, 4096, 1280, device=args.device, dtype=dtype)
            with torch.no_grad():
                t = measure(contestants(stack, tokens, text, image), hidden, args.rounds)
            ms = " | ".join(f"{1e3 * t[x]:.1f}" for x in ("base", "ours", "diffusers", "plain"))
            ratios = f"{t['ours'] / t['diffusers']:.2f} | {t['ours'] / t['plain']:.2f}"
            print(f"| {name} | {tokens} | {ms} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
