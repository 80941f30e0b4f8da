"""What a mask, a curve and a table of layers add to one UNet call, and four units to one, as ratios in one run.

    python benchmarks/fine.py [--size 64] [--channels 320] [--rounds 7] [--device cuda] [--dtype float16]

ldm's UNet of SD1.5's shape with random weights, cond and uncond in one batch. What is compared is a few per cent of a
call, less than a busy machine's noise, so it is measured by itself: the time inside the hooks (the terms and their
addition), and the base model's for the rest. Rounds of the contestants alternate; each one's time is its fastest
round, since whatever else the machine does only adds. Needs stable-diffusion-sdkit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, not installed

from lib_ipadapter.adapters.variant import VariantSpec
from lib_ipadapter.attention import hooks
from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.region import Region
from lib_ipadapter.attention.session import ImagePrompt, Session, Timing
from lib_ipadapter.standalone.model import quick
from lib_ipadapter.unit.weights import Curve, LayerRule

CONTEXT, TOKENS = 768, 4


def make_unet(channels: int) -> nn.Module:
    """SD1.5's UNet, of any width."""
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    with contextlib.redirect_stdout(io.StringIO()):
        unet = UNetModel(
            image_size=32, in_channels=4, out_channels=4, model_channels=channels, attention_resolutions=[4, 2, 1],
            num_res_blocks=2, channel_mult=[1, 2, 4, 4], num_heads=8, use_spatial_transformer=True,
            transformer_depth=1, context_dim=CONTEXT, use_checkpoint=False, legacy=False,
        )  # fmt: skip
    return quick(unet.eval().requires_grad_(False))


class Weights:
    """K', V' weights of an adapter, random."""

    def __init__(self, unet: nn.Module) -> None:
        layers = cross_attention_layers(unet)
        self.path = Path("random")
        widths = tuple(layer.width for layer in layers)
        self.spec = VariantSpec("base", "base", "random", "pooled", 1, "", TOKENS, CONTEXT, widths)
        self._pairs = [tuple(torch.randn(w, CONTEXT) * 0.02 for _ in range(2)) for w in widths]

    def weights(self, layer: int) -> tuple[Tensor, ...]:
        return self._pairs[layer]


def sessions_of(weights: Weights) -> dict[str, Session]:
    """What is compared."""
    tokens = torch.randn(2, TOKENS, CONTEXT)

    def prompt(**fields: object) -> ImagePrompt:
        return ImagePrompt(weights, tokens, torch.ones(TOKENS), 0.8, **fields)  # type: ignore[arg-type]

    table = {"rule": LayerRule(table=tuple((t, 0.5 + t / 32) for t in range(16)))}
    curve = {"timing": Timing(curve=Curve(((0.0, 0.2), (1.0, 0.9))))}
    mask = {"region": Region(torch.rand(512, 512))}
    return {
        "base model": Session([]),
        "one unit": Session([prompt()]),
        "with a table of layers": Session([prompt(**table)]),
        "with a curve": Session([prompt(**curve)]),
        "with a mask": Session([prompt(**mask)]),
        "with all three": Session([prompt(**table, **curve, **mask)]),
        "four units": Session([prompt() for _ in range(4)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="side of the latents")
    parser.add_argument("--channels", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    torch.manual_seed(0)
    unet = make_unet(args.channels)
    weights = Weights(unet)
    unet = unet.to(args.device, getattr(torch, args.dtype))
    unet.dtype = getattr(torch, args.dtype)
    sessions = sessions_of(weights)
    x, context = torch.randn(2, 4, args.size, args.size), torch.randn(2, 77, CONTEXT)
    x, context = (t.to(args.device, unet.dtype) for t in (x, context))
    times = torch.tensor([500, 500], device=args.device)

    def call(session: Session) -> tuple[float, float]:
        """Seconds of the whole call, and of what the hooks do in it."""
        clock = Clock(args.device)
        with session.attached(unet), torch.no_grad(), clock.over(session):
            session.begin_step([0, 1], 0.4, size=(args.size, args.size))
            clock.wait()
            begun = time.perf_counter()
            unet(x, times, context=context)
            clock.wait()
            return time.perf_counter() - begun, clock.spent

    for session in sessions.values():
        call(session)  # which projects K' and V'
    calls = {name: [] for name in sessions}
    for _ in range(args.rounds):
        for name, session in sessions.items():
            calls[name].append(call(session))
    base = min(whole for whole, _ in calls["base model"])
    ours = {name: min(spent for _, spent in found) for name, found in calls.items()}
    one = ours["one unit"]
    print(f"base model: {base:.4f} s a call")
    print("| | in the hooks, ms | call, to one unit's | in the hooks, to one unit's |")
    print("|---|---|---|---|")
    for name, spent in ours.items():
        if spent:
            print(f"| {name} | {1e3 * spent:.2f} | {(base + spent) / (base + one):.4f} | {spent / one:.2f} |")


class Clock:
    """The time that terms and their addition take."""

    def __init__(self, device: str) -> None:
        self.spent = 0.0
        self.device = device

    @contextlib.contextmanager
    def over(self, session: Session) -> Iterator[None]:
        """Counts inside."""
        add = hooks.add_term
        session.terms, hooks.add_term = self._timed(session.terms), self._timed(add)  # type: ignore[method-assign]
        try:
            yield
        finally:
            del session.terms
            hooks.add_term = add

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            self.wait()
            begun = time.perf_counter()
            result = function(*args)
            self.wait()
            self.spent += time.perf_counter() - begun
            return result

        return timed

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
