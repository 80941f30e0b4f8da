"""A small UNet whose queries and text branches are watched, and the maps that they should give, written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_ipadapter.attention.heatmaps.recorder import Level, Recorder
from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.session import ImagePrompt, Session
from tests.tiny import CONTEXT, Block

WIDTH = 16


class UNet(nn.Module):
    """Five layers at three levels, halved rounding up: sizes as a real UNet has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.input_blocks = nn.ModuleList(Block(WIDTH, 2) for _ in range(2))
        self.middle_block = nn.ModuleList([Block(WIDTH, 2)])
        self.output_blocks = nn.ModuleList(Block(WIDTH, 2) for _ in range(2))

    def forward(self, x: Tensor, timesteps: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        def on(block: nn.Module, x: Tensor) -> Tensor:
            return block(x.flatten(2).transpose(1, 2), context).transpose(1, 2).view_as(x)

        sizes = [x.shape[-2:]]
        for block in self.input_blocks:
            x = F.avg_pool2d(on(block, x), 2, ceil_mode=True, count_include_pad=False)
            sizes.append(x.shape[-2:])
        x = on(self.middle_block[0], x)
        for block, size in zip(self.output_blocks, sizes[-2::-1], strict=True):
            x = on(block, F.interpolate(x, scale_factor=2)[..., : size[0], : size[1]])
        return x


def inputs(rows: int, size: tuple[int, int] = (9, 6)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, WIDTH, *size, generator=generator)
    return x, torch.randn(rows, 5, CONTEXT, generator=generator)


def watched(prompts: Sequence[ImagePrompt]) -> Session:
    return Session(prompts, observer=Recorder.of(prompts))


def run(unet: nn.Module, held: Session, x: Tensor, context: Tensor, **more: object) -> Tensor:
    step = {"sets": [0] * (len(x) // 2) + [1] * (len(x) - len(x) // 2), "fraction": 0.0, **more}
    with held.attached(unet):
        held.begin_step(**step)
        out = unet(x, context=context)
        held.end_step()
    return out


class Watch:
    """q and Z of every layer, as the model alone makes them; to be made before the session attaches."""

    def __init__(self, unet: nn.Module) -> None:
        self.query: dict[int, Tensor] = {}
        self.text: dict[int, Tensor] = {}
        for layer in cross_attention_layers(unet):
            at = layer.position
            layer.module.to_q.register_forward_hook(lambda m, args, q, at=at: self.query.update({at: q}))
            layer.module.to_out[0].register_forward_pre_hook(
                lambda m, args, at=at: self.text.update({at: args[0].clone()})
            )


def plain(layer, prompt: ImagePrompt, query: Tensor, text: Tensor, references: int) -> Tensor:
    """The map [references, N] of one row, written out: query and text are [N, width]."""
    w_k, w_v = prompt.adapter.weights(layer.position)
    tokens = prompt.tokens[0]
    key, value = F.linear(tokens, w_k), F.linear(tokens, w_v) * prompt.token_weights[:, None]
    d, masses, terms = query.shape[1] // layer.heads, [], []
    for head in range(layer.heads):
        at = slice(head * d, (head + 1) * d)
        attention = (query[:, at] @ key[:, at].T / d**0.5).softmax(-1)
        each = len(tokens) // references
        masses.append(torch.stack([attention[:, r * each : (r + 1) * each].sum(1) for r in range(references)]))
        terms.append(attention @ value[:, at])
    term = (prompt.weight * torch.cat(terms, 1)).norm(dim=1)
    return torch.stack(masses).mean(0) * term / (term + text.norm(dim=1))


def upsampled(values: Tensor, size: tuple[int, int]) -> Tensor:
    """[R, N] to [R, H, W] by where each latent's token is."""
    level = Level.of(size, values.shape[1])
    assert level is not None
    grid = values.view(-1, *level.size)
    rows, columns = (torch.arange(n) // 2**level.depth for n in size)
    return grid[:, rows][:, :, columns]


def expected(unet, watch: Watch, prompt: ImagePrompt, row: int, references: int, size, part: str = "") -> Tensor:
    layers = [layer for layer in cross_attention_layers(unet) if part in ("", layer.part)]
    found = [
        upsampled(plain(la, prompt, watch.query[la.position][row], watch.text[la.position][row], references), size)
        for la in layers
    ]  # fmt: skip
    return torch.stack(found).mean(0)


def close(values: object, wanted: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(values), wanted, rtol=1e-4, atol=1e-6)


def seen(held: Session, number: int = 0, picture: int = 0) -> dict:
    assert isinstance(held.observer, Recorder)
    maps = held.observer.maps(number)[picture]
    assert maps is not None
    return maps.columns
