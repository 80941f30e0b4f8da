"""DDIM (arXiv 2010.02502) with η = 0 on ldm's schedule, under classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.session import COND, UNCOND, Session
from .config import Config

Call = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x [B, 4, h, w], t [B], context [B, 77, C]) to the output
Progress = Callable[[int, int], None]  # steps done, steps in all


def alphas_cumprod(config: Config) -> Tensor:
    """ᾱ of each training step [timesteps], float32: ldm's "linear" schedule, linear in sqrt(β)."""
    start, end = config.linear_start**0.5, config.linear_end**0.5
    betas = torch.linspace(start, end, config.timesteps, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    return (zero_terminal(alphas) if config.zero_snr else alphas).float()


def zero_terminal(alphas: Tensor) -> Tensor:
    """ᾱ rescaled so that the last step is noise alone, the first as it was (arXiv 2305.08891, algorithm 1)."""
    roots = alphas.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square()


@dataclass(frozen=True)
class Schedule:
    """The steps of one sampling, ascending in t. timesteps [S]; alphas, alphas_prev [S]: ᾱ of t and of the step
    below it, float32 on the CPU; v: whether the model predicts v."""

    timesteps: tuple[int, ...]
    alphas: Tensor
    alphas_prev: Tensor
    v: bool

    @classmethod
    def make(cls, config: Config, steps: int) -> Schedule:
        """The steps of the model that the config describes."""
        return cls.of(alphas_cumprod(config), config.parameterization == "v", steps)

    @classmethod
    def of(cls, alphas: Tensor, v: bool, steps: int) -> Schedule:
        """ldm's uniform steps: 1, 1 + c, 1 + 2c, ... with c = timesteps // steps, as far as the training went; with
        zero terminal SNR those that end at the last. alphas: ᾱ [timesteps]."""
        count = len(alphas)
        times = torch.arange(0, count, count // steps) + 1
        times = times[times < count]  # 1 + 999 is past the end, where ldm fails
        if alphas[-1] == 0:  # from pure noise on (arXiv 2305.08891, 3.3)
            times = (count - torch.arange(steps, dtype=torch.float64) * count / steps).round().long().flip(0) - 1
        previous = torch.cat([times.new_zeros(1), times[:-1]])
        return cls(tuple(times.tolist()), alphas[times], alphas[previous], v)

    def first(self, count: int) -> Schedule:
        """Only the ``count`` steps of the least noise."""
        return Schedule(self.timesteps[:count], self.alphas[:count], self.alphas_prev[:count], self.v)

    def noised(self, x0: Tensor, noise: Tensor, index: int = -1) -> Tensor:
        """x0 as it is at a step."""
        alpha = self.alphas[index].item()
        return alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise

    def step(self, x: Tensor, output: Tensor, index: int) -> Tensor:
        """x at the step below, by equation 12 with σ = 0."""
        a = self.alphas[index].to(x.device)
        previous = self.alphas_prev[index].to(x.device)
        if self.v:
            epsilon, x0 = a.sqrt() * output + (1 - a).sqrt() * x, a.sqrt() * x - (1 - a).sqrt() * output
        else:
            epsilon, x0 = output, (x - (1 - a).sqrt() * output) / a.sqrt()
        return previous.sqrt() * x0 + (1 - previous).sqrt() * epsilon


@dataclass(frozen=True)
class Keep:
    """What must stay: latents x0 and noise [B, 4, h, w]; mask [1, 1, h, w], 1 where it is repainted."""

    x0: Tensor
    noise: Tensor
    mask: Tensor

    def blend(self, x: Tensor, kept: Tensor) -> Tensor:
        """x where it is repainted, ``kept`` elsewhere."""
        return x * self.mask + kept * (1 - self.mask)


def guided(call: Call, x: Tensor, t: int, cond: Tensor, uncond: Tensor, cfg: float) -> Tensor:
    """The output under guidance. Rows are [cond, uncond]; with cfg = 1, cond alone."""
    if cfg == 1.0:
        return call(x, torch.full((len(x),), t, device=x.device), cond)
    times = torch.full((2 * len(x),), t, device=x.device)
    out_cond, out_uncond = call(torch.cat([x, x]), times, torch.cat([cond, uncond])).chunk(2)
    return out_uncond + cfg * (out_cond - out_uncond)


def ddim(
    call: Call,
    session: Session,
    schedule: Schedule,
    x: Tensor,
    cond: Tensor,
    uncond: Tensor,
    cfg: float,
    keep: Keep | None = None,
    progress: Progress | None = None,
    sets: Sequence[int] | None = None,
) -> Tensor:
    """Samples from x [B, 4, h, w], which is at the schedule's last step. The session's hooks are on already.
    sets: the token set of each row, [cond..., uncond...]; by default COND and UNCOND."""
    total, rows = len(schedule.timesteps), len(x)
    all_sets = list(sets) if sets is not None else [COND] * rows + [UNCOND] * rows
    acting = all_sets[:rows] if cfg == 1.0 else all_sets
    for done in range(total):
        index = total - 1 - done
        if keep is not None:
            x = keep.blend(x, schedule.noised(keep.x0, keep.noise, index))
        session.begin_step(acting, done / total)
        output = guided(call, x, schedule.timesteps[index], cond, uncond, cfg)
        session.end_step()
        x = schedule.step(x, output, index)
        if progress is not None:
            progress(done + 1, total)
    return x if keep is None else keep.blend(x, keep.x0)
