"""What a face costs: the LoRA inside a FaceID file by hooks against the same one merged, and a known reference.

    python benchmarks/faces.py [--size 32] [--channels 320] [--rank 128] [--rounds 5] [--device cuda] [--dtype float16]

ldm's UNet of SD1.5's shape with random weights, cond and uncond in one batch. Contestants alternate; each one's time is
its fastest round. Printed: the UNet call with the hooks against that with merged weights, both with the image prompt;
the memory of the LoRA on the device; and what a second job with the same reference looks for and recognises (nothing),
by the small face models of the tests. Needs stable-diffusion-sdkit, onnxruntime and onnx.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, not installed

from benchmarks.fine import CONTEXT, TOKENS, make_unet
from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.session import COND, UNCOND, ImagePrompt, Session
from lib_ipadapter.encoders import EncoderSource
from lib_ipadapter.faces import FaceAnalyser, FacePacks
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.prompts.pipeline import Caches, Pipeline
from lib_ipadapter.prompts.references import NoStore
from lib_ipadapter.prompts.resolve import resolve
from lib_ipadapter.unit import Unit
from tests.face_models import picture, write_pack
from tests.synthetic import adapter_tensors, write_adapter
from tests.tiny import linear_of


def adapter_for(unet: nn.Module, folder: Path, rank: int) -> Adapter:
    """A FaceID file of the UNet's widths, random."""
    widths = [layer.width for layer in cross_attention_layers(unet)]
    return Adapter.load(
        write_adapter(folder / "faceid.safetensors", adapter_tensors("faceid", CONTEXT, widths, 512, lora=rank))
    )


@torch.no_grad()
def merge(unet: nn.Module, adapter: Adapter, sign: float) -> None:
    """Adds the LoRA to the weights, or takes it off again."""
    places = {layer.number: layer for layer in cross_attention_layers(unet)}
    for (number, target), (down, up) in adapter.lora().items():
        weight = linear_of(places[number | 1], number, target).weight
        weight += sign * (up.to(weight) @ down.to(weight))


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.no_grad()
def compare(args: argparse.Namespace, folder: Path) -> None:
    """Hooks against merged weights."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    unet = make_unet(args.channels).to(device, dtype)
    adapter = adapter_for(unet, folder, args.rank)
    hooked = ImagePrompt(adapter, torch.randn(2, TOKENS, CONTEXT), torch.ones(TOKENS))
    prompts = {"hooks": hooked, "merged": dataclasses.replace(hooked, lora=0.0)}
    x = torch.randn(2, 4, args.size, args.size, device=device, dtype=dtype)
    t, text = torch.tensor([500, 500], device=device), torch.randn(2, 77, CONTEXT, device=device, dtype=dtype)
    best: dict[str, float] = {}
    for _ in range(args.rounds):
        for name, prompt in prompts.items():
            if name == "merged":
                merge(unet, adapter, 1.0)
            session = Session([prompt])
            with session.attached(unet):
                for _ in range(2):  # the first one moves what stays on the device
                    session.begin_step([COND, UNCOND], 0.0)
                    seconds = timed(lambda: unet(x, t, context=text), device)
                    best[name] = min(best.get(name, seconds), seconds)
            if name == "merged":
                merge(unet, adapter, -1.0)
    size = sum(part.numel() for pair in adapter.lora().values() for part in pair) * x.element_size()
    print(f"UNet call with the LoRA by hooks: {best['hooks']:.3f} s, merged: {best['merged']:.3f} s, ratio "
          f"{best['hooks'] / best['merged']:.3f}; the LoRA on the device: {size / 2**20:.0f} MiB")  # fmt: skip


def known(folder: Path) -> None:
    """A second job with the same reference."""
    write_pack(folder / "packs")
    picture((300, 300), (800, 700), size=(1024, 1024), radius=60).save(folder / "two.png")
    faces, caches, pictures = FaceAnalyser(FacePacks(lambda: [folder / "packs"])), Caches(), Pictures()
    adapter = Adapter.load(write_adapter(folder / "a.safetensors", adapter_tensors("faceid", 768, (320,), 512)))
    unit = Unit.parse({"model": "m", "images": [folder / "two.png"]})
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        Pipeline(EncoderSource([]), caches, faces).prompt(resolve(unit, NoStore(), pictures), adapter)
        seconds.append(time.perf_counter() - started)
    print(f"a reference of 1024 x 1024: first job {seconds[0]:.3f} s with the small models, second {seconds[1]:.4f} s; "
          f"pictures looked at: {faces.runs}, decoded: {pictures.decoded}")  # fmt: skip


def main() -> None:
    """Prints both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="of the latents")
    parser.add_argument("--channels", type=int, default=320)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        known(Path(folder))
        compare(args, Path(folder))


if __name__ == "__main__":
    main()
