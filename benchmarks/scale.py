"""What a training of many pictures takes: samples a second, GPU hours, tokens, storage and traffic.

    python benchmarks/scale.py [--base sd15] [--log runs/mine/log.jsonl --gpus 1 --gpu h100]

Operations are counted on the real shapes (torch's counter, on the meta device, no weights); how many of them a GPU does
a second is assumed, or taken from a run's log by --log. All assumptions are printed with the table. The paper's own
figures (arXiv 2308.06721, 4.1: 8 V100, 1 M steps of 8 pictures a GPU, 10 M pictures, 22 M parameters) are checked.
Needs stable-diffusion-sdkit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, not installed

from lib_ipadapter.adapters.projection import LinearProjection
from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.standalone.sdxl import UnetShape, build_unet

HOUR = 3600


@dataclass(frozen=True)
class Gpu:
    """flops: dense in half precision, a second, as its maker says; share: of them that a training reaches, assumed."""

    flops: float
    share: float


GPUS = {"v100": Gpu(125e12, 0.25), "h100": Gpu(989e12, 0.35)}


@dataclass(frozen=True)
class Work:
    """Operations of one picture (a multiplication and an addition are two). forward: of the UNet; encode: of
    autoencoder, image encoder and text encoder; parameters: of the adapter; latents, features, texts: bytes of them."""

    forward: float
    encode: float
    parameters: int
    latents: int
    features: int
    texts: int
    tokens: int

    def step(self, cached: bool) -> float:
        """Of a training step: forward, and backward through the frozen UNet, which costs a forward more (its weights
        have no gradients); the adapter's own are counted with it."""
        return 2 * self.forward + 6 * self.parameters + (0 if cached else self.encode)


@dataclass(frozen=True)
class Reckoned:
    """rate: pictures a second on all GPUs; hours: GPU hours; days: on the clock; tokens: of text and image, all epochs;
    pictures_bytes, cache_bytes: storage; read: bytes a second from the storage; reduced: bytes a second that each GPU
    sends for gradients."""

    rate: float
    hours: float
    days: float
    tokens: float
    pictures_bytes: float
    cache_bytes: float
    read: float
    reduced: float


def reckon(
    work: Work, pictures: float, epochs: float, gpus: int, gpu: Gpu, batch: int, picture_bytes: float, cached: bool,
    measured: float | None = None,
) -> Reckoned:  # fmt: skip
    """measured: pictures a second of one GPU, instead of what is assumed."""
    one = measured or gpu.flops * gpu.share / work.step(cached)
    rate = one * gpus
    seconds = pictures * epochs / rate
    row = work.latents + work.features + work.texts
    return Reckoned(
        rate=rate, hours=seconds * gpus / HOUR, days=seconds / HOUR / 24, tokens=pictures * epochs * work.tokens,
        pictures_bytes=pictures * picture_bytes, cache_bytes=pictures * row if cached else 0,
        read=rate * (row if cached else picture_bytes),
        reduced=2 * (gpus - 1) / gpus * 4 * work.parameters * one / batch,
    )  # fmt: skip


def unet_of(base: str, channels: int = 320) -> Any:
    """On the meta device. SD1.5's has no conditions, which cost next to nothing, and may be narrower."""
    if base == "sdxl":
        depths = {f"input_blocks.{i}.1": n for i, n in ((4, 2), (5, 2), (7, 10), (8, 10))}
        depths |= {"middle_block.1": 10, **{f"output_blocks.{i}.1": 10 if i < 3 else 2 for i in range(6)}}
        shape = UnetShape(4, 4, 320, (1, 2, 4), (2, 2, 2), depths, 2048, 2816)
        with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
            return build_unet(shape)
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
        return UNetModel(
            image_size=32, in_channels=4, model_channels=channels, out_channels=4, num_res_blocks=2, num_heads=8,
            attention_resolutions=[4, 2, 1], channel_mult=[1, 2, 4, 4], use_spatial_transformer=True, context_dim=768,
            transformer_depth=1, use_checkpoint=False, legacy=False,
        )  # fmt: skip


def counted(call: Any) -> float:
    """Operations of a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        call()
    return float(counter.get_total_flops())


def work_of(base: str, resolution: int) -> Work:
    """Of one picture of this base, with a base adapter of 4 tokens from ViT-H."""
    unet, side = unet_of(base), resolution // 8
    layers = cross_attention_layers(unet)
    context = layers[0].context
    width = 2816 if base == "sdxl" else 0

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    own = {"y": empty(1, width)} if width else {}
    forward = counted(
        lambda: unet(empty(1, 4, side, side), torch.zeros(1, device="meta"), empty(1, 77, context), **own)
    )
    projection = LinearProjection(1024, 4, context)
    parameters = sum(p.numel() for p in projection.parameters()) + sum(2 * x.width * context for x in layers)
    return Work(
        forward, encoders(base, resolution), parameters, latents=8 * side * side * 4, features=1024 * 4,
        texts=77 * context * 2, tokens=77 + 4,
    )  # fmt: skip


def encoders(base: str, resolution: int) -> float:
    """Autoencoder, ViT-H/14 at 224 and the text towers (CLIP-L, for SDXL ViT-bigG's beside it)."""
    import open_clip
    from ldm.modules.diffusionmodules.model import Encoder

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
        stage = Encoder(ch=128, out_ch=3, ch_mult=(1, 2, 4, 4), num_res_blocks=2, attn_resolutions=[], in_channels=3,
                        resolution=256, z_channels=4, double_z=True)  # fmt: skip
    total = counted(lambda: stage(empty(1, 3, resolution, resolution)))
    total += transformer(open_clip.get_model_config("ViT-H-14")["vision_cfg"], 257)
    total += transformer(open_clip.get_model_config("ViT-L-14")["text_cfg"], 77)
    return total + (transformer(open_clip.get_model_config("ViT-bigG-14")["text_cfg"], 77) if base == "sdxl" else 0)


def transformer(config: dict[str, Any], tokens: int) -> float:
    """Operations of a transformer: 24·N·w² + 4·N²·w a layer, for an MLP four times as wide (ViT-bigG's text tower)."""
    width, layers = config["width"], config["layers"]
    ratio = config.get("mlp_ratio", 4.0)
    return float(layers * (2 * tokens * width**2 * (4 + 2 * ratio) + 4 * tokens**2 * width))


def log_rate(path: Path, gpus: int) -> float:
    """Pictures a second of one GPU: the median of a run's log, its first ten steps left out."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][10:]
    if not rows:
        raise SystemExit(f"{path}: fewer than 11 steps; give the log of a longer run")
    return statistics.median(row["pictures_per_second"] for row in rows) / gpus


PAPER = {"steps": 1_000_000, "gpus": 8, "batch": 8, "pictures": 10_000_000, "parameters": 22_000_000}


def check_paper(work: Work) -> str:
    """The paper's figures from ours: parameters, and how often a picture is seen."""
    samples = PAPER["steps"] * PAPER["gpus"] * PAPER["batch"]
    found = work.parameters / 1e6
    if abs(found - PAPER["parameters"] / 1e6) > 0.5:
        raise SystemExit(f"the adapter has {found:.1f} M parameters here, the paper says 22 M")
    return (
        f"The paper: 1 M steps of 8 x 8 pictures are {samples / 1e6:.0f} M samples, "
        f"{samples / PAPER['pictures']:.1f} times each of 10 M; "
        f"its adapter has 22 M parameters, counted here: {found:.1f} M."
    )


def size(value: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} PB"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="sd15", choices=("sd15", "sdxl"))
    parser.add_argument("--resolution", type=int, help="512, of sdxl 1024")
    parser.add_argument("--epochs", type=float, default=6.4, help="of the paper's training")
    parser.add_argument("--picture-bytes", type=float, default=100e3, help="of a picture and its caption in a shard")
    parser.add_argument("--batch", type=int, default=8, help="pictures of a GPU and step")
    parser.add_argument("--log", type=Path, help="log.jsonl of a run, whose speed stands for --gpu")
    parser.add_argument("--gpus", type=int, default=1, help="of that run")
    parser.add_argument("--gpu", default="h100", choices=tuple(GPUS), help="of that run")
    args = parser.parse_args(argv)
    resolution = args.resolution or (1024 if args.base == "sdxl" else 512)
    print(check_paper(work_of("sd15", 512)))
    work = work_of(args.base, resolution)
    measured = {args.gpu: log_rate(args.log, args.gpus)} if args.log else {}
    print(
        f"\n{args.base} at {resolution}: {work.forward / 1e12:.2f} T operations forward, {work.encode / 1e12:.2f} T "
        f"of the encoders, {work.step(True) / 1e12:.2f} T a step from the caches, "
        f"{work.step(False) / 1e12:.2f} T without."
    )
    for name, gpu in GPUS.items():
        speed = f"measured: {measured[name]:.2f} pictures/s" if name in measured else f"assumed: {gpu.share:.0%} of it"
        print(f"{name}: {gpu.flops / 1e12:.0f} T operations/s as its maker says; {speed}")
    print(
        f"Assumed: {args.epochs:g} epochs, {size(args.picture_bytes)} a picture, a cache row of "
        f"{size(work.latents + work.features + work.texts)}, ring all-reduce of float32 gradients at each step.\n"
    )
    print(
        "| pictures | GPUs | caches | pictures/s | GPU hours | days | tokens | pictures on disk | caches on disk | "
        "read/s | gradients/s each |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for pictures in (10e6, 1e9):
        for name, gpus in (("v100", 8), ("h100", 8), ("h100", 64)):
            for cached in (False, True):
                found = reckon(work, pictures, args.epochs, gpus, GPUS[name], args.batch, args.picture_bytes, cached,
                               measured.get(name))  # fmt: skip
                print(
                    f"| {pictures / 1e6:.0f} M | {gpus} {name} | {'yes' if cached else 'no'} | {found.rate:.0f} | "
                    f"{found.hours:.3g} | {found.days:.3g} | {found.tokens:.2g} | {size(found.pictures_bytes)} | "
                    f"{size(found.cache_bytes)} | {size(found.read)} | {size(found.reduced)} |"
                )


if __name__ == "__main__":
    main()
