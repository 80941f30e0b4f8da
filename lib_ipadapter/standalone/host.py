"""Standalone: samples a checkpoint without a WebUI, with image prompts by the same Session."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..attention.session import ImagePrompt, Session
from ..errors import ModelError, UnitError
from ..options import checked, fields_of
from .checkpoint import load_parts
from .concat import append
from .model import Parts
from .options import GenerateOptions
from .sampler import Call, Keep, Progress, Schedule, ddim
from .sdxl import conditions
from .sdxl_text import SdxlText

_SAMPLING = fields_of(GenerateOptions, UnitError)


@dataclass(frozen=True)
class Standalone:
    """Built by ``load``."""

    parts: Parts
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(
        cls,
        checkpoint: Path | str,
        config: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        prediction: str = "auto",
    ) -> Standalone:
        """config, prediction: as ``load_parts`` has them. Raises FileError and ModelError. float16 takes a GPU."""
        device = torch.device(device)
        if dtype == torch.float16 and device.type == "cpu":
            raise ModelError("precision float16 on the CPU: expected float32; choose it, or a GPU")
        return cls(load_parts(checkpoint, config, device, dtype, prediction), device, dtype)

    @property
    def multiple(self) -> int:
        """Width and height are multiples of this many pixels: 64 in SD1.x and SD2.x."""
        config = self.parts.config
        return self._factor * 2 ** (len(config.unet["channel_mult"]) - 1)

    @property
    def side(self) -> int:
        """Pixels of the squares that it was made for."""
        return 1024 if self.parts.config.sdxl else 512

    @property
    def _factor(self) -> int:
        """Pixels per latent, along one side."""
        return int(2 ** (len(self.parts.config.autoencoder["ch_mult"]) - 1))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """[B, 77, context] float32"""
        return self.parts.text.encode(texts)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 to scaled latents."""
        return self.parts.autoencoder.encode(pictures.to(self.device)) * self.parts.config.scale_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to [B, 3, H, W] in -1..1."""
        pictures = [self.parts.autoencoder.decode(x[None] / self.parts.config.scale_factor) for x in latents]
        return torch.cat(pictures).clamp(-1, 1)

    def unet(self, x: Tensor, t: Tensor, context: Tensor, conditions: Tensor | None = None) -> Tensor:
        """The UNet's output in float32, for inputs in float32. conditions: of SDXL, [B, P]."""
        half = contextlib.nullcontext() if self.dtype == torch.float32 else torch.autocast("cuda", self.dtype)
        with half:
            own = {} if conditions is None else {"y": conditions.to(self.dtype)}
            output: Tensor = self.parts.unet(x.to(self.dtype), t, context=context.to(self.dtype), **own)
        return output.float()

    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str],
        negative: str = "",
        prompts: Sequence[ImagePrompt] = (),
        steps: int = 50,
        cfg: float = 7.5,
        seed: int | Sequence[int] = 0,
        size: tuple[int, int] = (512, 512),
        batch: int = 1,
        init_image: Image.Image | None = None,
        strength: float = 0.75,
        mask: Image.Image | None = None,
        progress: Progress | None = None,
        sets: Sequence[int] | None = None,
        appended: tuple[Tensor, Tensor] | None = None,
    ) -> list[Image.Image]:
        """``batch`` pictures of ``size`` (width, height); the i-th has the noise of ``seed`` + i.

        init_image: begin from it, noised to ``strength`` 0..1 of the steps. mask: repaint only where it is
        white, the other pixels stay. prompt, seed: one for each picture, where they are lists. sets: token
        set of each picture's cond row, then of each uncond row, of ``prompts`` with a reference for each
        picture. appended: (cond, uncond) tokens [1 or batch, T, context] behind the text's, the concat
        ablation. Raises UnitError, WrongBase, UnsupportedModel.
        """
        texts = [prompt] * batch if isinstance(prompt, str) else list(prompt)
        seeds = list(seed) if isinstance(seed, Sequence) else [seed + i for i in range(batch)]
        self._check(steps, cfg, seeds, size, batch, strength, texts)
        if mask is not None and init_image is None:
            raise UnitError("mask", "a mask without an init image", "an init image, whose unmasked pixels stay")
        schedule = Schedule.make(self.parts.config, steps)
        noise = self._noise(seeds, size)
        x, keep = noise, None
        start = init_image.convert("RGB").resize(size, Image.Resampling.LANCZOS) if init_image else None
        area = mask.convert("L").resize(size, Image.Resampling.BILINEAR) if mask else None
        if start is not None:
            x0 = self.encode(_to_tensor(start)).expand_as(noise)
            schedule = schedule.first(max(1, round(strength * len(schedule.timesteps))))
            x = schedule.noised(x0, noise)
            keep = Keep(x0, noise, self._latent_mask(area)) if area is not None else None
        cond, uncond = self.encode_text(texts), self.encode_text([negative] * batch)
        call: Call = self.unet
        if isinstance(self.parts.text, SdxlText):
            uncond, call = self._sdxl(texts, negative, size, uncond)
        if appended is not None:
            cond, uncond = (append(text, tokens) for text, tokens in zip((cond, uncond), appended, strict=True))
        session = Session(prompts)
        with session.attached(self.parts.unet):
            x = ddim(call, session, schedule, x, cond, uncond, cfg, keep, progress, sets)
        pictures = _to_pictures(self.decode(x))
        if start is None or area is None:
            return pictures
        return [Image.composite(picture, start, area) for picture in pictures]

    def _sdxl(self, texts: Sequence[str], negative: str, size: tuple[int, int], uncond: Tensor) -> tuple[Tensor, Call]:
        """(uncond, the UNet with SDXL's conditions). As the WebUI has it, no negative text is zeros, and a picture is
        of its own size and not cut."""
        text: Any = self.parts.text
        pooled = [text.both(texts)[1], text.both([negative] * len(texts))[1]]
        if not negative:
            uncond, pooled[1] = torch.zeros_like(uncond), torch.zeros_like(pooled[1])
        width, height = size
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=self.device).expand(len(texts), -1)
        rows = [conditions(each, sizes, self.parts.config.size_width) for each in pooled]
        both = torch.cat(rows)

        def call(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            return self.unet(x, t, context, both[: len(x)])

        return uncond, call

    def _check(
        self, steps: int, cfg: float, seeds: Sequence[int], size: tuple[int, int], batch: int,
        strength: float, texts: Sequence[str],
    ) -> None:  # fmt: skip
        checked(_SAMPLING, {"steps": steps, "cfg": cfg, "batch": batch, "strength": strength})
        for name, given in (("prompt", texts), ("seed", seeds)):
            if len(given) != batch:
                raise UnitError(name, f"{len(given)} {name}s", f"one for each of {batch} pictures")
        for seed in seeds:
            if not 0 <= seed < 2**63:
                raise UnitError("seed", seed, "a whole number from 0 to 2^63 - 1")
        for name, side in zip(("width", "height"), size, strict=True):
            if not self._good_side(side):
                raise UnitError(name, side, self._sides)

    @property
    def _sides(self) -> str:
        return f"a multiple of {self.multiple} from {self.multiple} to 4096"

    def _good_side(self, side: int) -> bool:
        return side % self.multiple == 0 and self.multiple <= side <= 4096

    def _noise(self, seeds: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Drawn on the CPU, one generator a picture: a batch draws what single pictures would, on any device."""
        shape = (1, self.parts.config.unet["in_channels"], size[1] // self._factor, size[0] // self._factor)
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.cat([torch.randn(shape, generator=draw) for draw in draws]).to(self.device)

    def _latent_mask(self, area: Image.Image) -> Tensor:
        """[1, 1, h, w]: a latent is repainted as much as the whitest of its pixels."""
        mask = torch.from_numpy(np.array(area, dtype=np.float32) / 255)[None, None]
        return torch.nn.functional.max_pool2d(mask, self._factor).to(self.device)


def _to_tensor(picture: Image.Image) -> Tensor:
    """RGB to [1, 3, H, W] in -1..1"""
    pixels: Any = np.array(picture, dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]


def _to_pictures(pixels: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in -1..1 to RGB"""
    if not pixels.isfinite().all():
        raise ModelError("the picture has NaN in it; use --precision float32, or a lower weight")
    eight_bits = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in eight_bits]
