"""The frozen base model of a training: an ldm checkpoint as the WebUI uses it, or a diffusers folder."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from ..attention.layers import Layer, cross_attention_layers
from ..errors import FileError, ModelError, UnsupportedModel

S = TypeVar("S", Tensor, Sequence[str])


@dataclass(frozen=True)
class Text:
    """tokens [B, T, context]; pooled [B, P] of SDXL's second tower, else None."""

    tokens: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Sizes:
    """SDXL's size conditions [B, 6]: original height, width, crop top, left, target height, width (pixels)."""

    ids: Tensor


def apart(rows: S, device: torch.device) -> list[S]:
    """What is encoded at a time: on a GPU the batch; on the CPU each row alone, which then does not depend on what is
    beside it, so that a row from the cache is the same bit for bit."""
    if device.type != "cpu":
        return [rows]
    return [rows[i : i + 1] for i in range(len(rows))]


def joined(texts: Sequence[Text]) -> Text:
    """The rows of all."""
    pooled = [text.pooled for text in texts if text.pooled is not None]
    return Text(torch.cat([text.tokens for text in texts]), torch.cat(pooled) if pooled else None)


class Base(ABC):
    """The interface of a base model to a training. It never changes.

    unet: the frozen UNet; alphas [timesteps]: ᾱ; v: whether it predicts v, else the noise;
    resolution: pixels it was made for; factor: pixels a latent; multiple: sides are multiples of it (pixels).
    """

    unet: Any
    alphas: Tensor
    v: bool
    resolution: int
    factor: int
    multiple: int
    sdxl = False
    device: torch.device
    dtype: torch.dtype  # that the UNet computes in

    @property
    def stored(self) -> torch.dtype:
        """The dtype of the UNet's weights. On the CPU float32: its GroupNorm takes no mixture."""
        return torch.float32 if self.device.type == "cpu" else self.dtype

    @property
    def layers(self) -> list[Layer]:
        """The cross-attention layers in file order."""
        return cross_attention_layers(self.unet)

    def moments(self, pixels: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in -1..1 to mean and std of the scaled latents [B, 8, H/8, W/8]."""
        return torch.cat([self._moments(part) for part in apart(pixels, self.device)])

    @abstractmethod
    def _moments(self, pixels: Tensor) -> Tensor:
        """``moments``."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to pictures in -1..1."""

    def text(self, captions: Sequence[str]) -> Text:
        """Captions to tokens."""
        return joined([self._text(part) for part in apart(captions, self.device)])

    @abstractmethod
    def _text(self, captions: Sequence[str]) -> Text:
        """``text``."""

    @abstractmethod
    def _call(self, x: Tensor, t: Tensor, text: Text, sizes: Sizes | None) -> Tensor:
        """The UNet."""

    @abstractmethod
    def besides(self) -> dict[str, nn.Module]:
        """The models beside the UNet: "autoencoder" and "text encoder"."""

    def keep(self, *names: str) -> None:
        """Of the models beside the UNet these are on the device; the others on the CPU, where they wait."""
        for name, model in self.besides().items():
            model.to(self.device if name in names else "cpu")

    @abstractmethod
    def checkpoint_gradients(self) -> None:
        """Recomputes the activations of the UNet's blocks in the backward pass instead of storing them."""

    def predict(self, x: Tensor, t: Tensor, text: Text, sizes: Sizes | None = None) -> Tensor:
        """The UNet's output [B, 4, h, w] in float32 for x [B, 4, h, w] at timesteps t [B]."""
        with self._autocast():
            return self._call(x.to(self.stored), t, text, sizes).float()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def open_base(
    path: Path | str, config: Path | str | None, device: torch.device, dtype: torch.dtype, prediction: str = "auto"
) -> Base:
    """The model in ``path``. prediction: what it predicts, where its file does not say so. Raises FileError,
    ModelError, UnsupportedModel."""
    path = Path(path)
    if os.path.isdir(path):
        if prediction != "auto":
            raise ModelError(f"prediction: got {prediction}, expected auto: the scheduler of {path.name} says it")
        return DiffusersBase(path, device, dtype)
    return LdmBase(path, Path(config) if config else path.with_suffix(".yaml"), device, dtype, prediction)


class LdmBase(Base):
    """A checkpoint of Stable Diffusion 1.x or 2.x and its yaml, or of SDXL."""

    def __init__(
        self, path: Path, config: Path, device: torch.device, dtype: torch.dtype, prediction: str = "auto"
    ) -> None:
        from ..standalone.checkpoint import load_parts
        from ..standalone.sampler import alphas_cumprod
        from ..standalone.sdxl import conditions

        self.device, self.dtype = device, dtype
        self.parts = load_parts(path, config, device, self.stored, prediction)
        self.unet = self.parts.unet
        self._size_conditions = conditions
        self.alphas = alphas_cumprod(self.parts.config)
        self.v = self.parts.config.parameterization == "v"
        self.sdxl = self.parts.config.sdxl
        self.resolution = 1024 if self.sdxl else 512
        self.factor = 2 ** (len(self.parts.config.autoencoder["ch_mult"]) - 1)
        self.multiple = self.factor * 2 ** (len(self.parts.config.unet["channel_mult"]) - 1)

    @torch.no_grad()
    def _moments(self, pixels: Tensor) -> Tensor:
        mean, deviation = self.parts.autoencoder.posterior(pixels.to(self.device))
        return torch.cat([mean, deviation], dim=1) * self.parts.config.scale_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self.parts.autoencoder.decode(latents / self.parts.config.scale_factor).clamp(-1, 1)

    @torch.no_grad()
    def _text(self, captions: Sequence[str]) -> Text:
        text: Any = self.parts.text
        return Text(*text.both(captions)) if self.sdxl else Text(text.encode(captions))

    def _call(self, x: Tensor, t: Tensor, text: Text, sizes: Sizes | None) -> Tensor:
        own = {}
        if self.sdxl:
            pooled, ids = _conditions(text, sizes)
            made = self._size_conditions(pooled, ids.to(self.device), self.parts.config.size_width)
            own["y"] = made.to(self.stored)
        output: Tensor = self.unet(x, t, context=text.tokens.to(self.stored), **own)
        return output

    def besides(self) -> dict[str, nn.Module]:
        return {"autoencoder": self.parts.autoencoder, "text encoder": self.parts.text}

    def checkpoint_gradients(self) -> None:
        # ldm's own checkpointing asks for gradients of all parameters, of which the frozen have none.
        for module in checkpointed_blocks(self.unet):
            _checkpoint(module)


def checkpointed_blocks(unet: nn.Module) -> list[nn.Module]:
    """Blocks of an ldm UNet whose activations are computed again."""
    return [module for module in unet.modules() if type(module).__name__ in ("ResBlock", "SpatialTransformer")]


def _checkpoint(module: nn.Module) -> None:
    plain = module.forward
    module.forward = lambda *args: checkpointed(plain, *args, use_reentrant=False)


def _conditions(text: Text, sizes: Sizes | None) -> tuple[Tensor, Tensor]:
    if sizes is None or text.pooled is None:
        raise ModelError("SDXL was called without its size conditions; this is a fault of this package")
    return text.pooled, sizes.ids


class DiffusersBase(Base):
    """A folder as diffusers saves a pipeline: SD1.5, SD2.1 or SDXL."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        try:
            from diffusers import AutoencoderKL, UNet2DConditionModel
        except ImportError as error:
            raise ModelError(
                f"{error.name or error} is not installed; run: pip install diffusers transformers, or give a "
                "checkpoint file and its yaml"
            ) from None
        self.folder, self.device, self.dtype = folder, device, dtype
        if not (folder / "unet" / "config.json").is_file():
            raise FileError(folder, "a folder without unet/config.json; give a model that diffusers saved")
        local = {"local_files_only": True, "low_cpu_mem_usage": False}
        self.unet = self._frozen(
            UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=self.stored, **local)
        )
        if self.unet.config.in_channels != self.unet.config.out_channels:
            raise UnsupportedModel(
                f"{folder.name}: a UNet of {self.unet.config.in_channels} input channels, expected "
                f"{self.unet.config.out_channels}; use a text-to-image model"
            )
        self.vae = self._frozen(AutoencoderKL.from_pretrained(folder / "vae", **local))
        self.scale = float(self.vae.config.scaling_factor)
        self.towers = [self._tower(suffix) for suffix in ("", "_2") if (folder / f"text_encoder{suffix}").is_dir()]
        self.sdxl = self.unet.config.addition_embed_type == "text_time"
        if not self.towers or (self.sdxl and len(self.towers) < 2):
            raise FileError(folder, "text encoders are missing; give the whole folder that diffusers saved")
        self.resolution = 1024 if self.sdxl else 512
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.multiple = self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.alphas, self.v = self._schedule()

    def _frozen(self, model: Any) -> Any:
        return model.to(self.device).eval().requires_grad_(False)

    def _tower(self, suffix: str) -> tuple[Any, Any]:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        kind = CLIPTextModelWithProjection if suffix else CLIPTextModel
        tokenizer = CLIPTokenizer.from_pretrained(self.folder / f"tokenizer{suffix}", local_files_only=True)
        model = kind.from_pretrained(self.folder / f"text_encoder{suffix}", local_files_only=True)
        return tokenizer, self._frozen(model)

    def _schedule(self) -> tuple[Tensor, bool]:
        path = self.folder / "scheduler" / "scheduler_config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            start, end, count = config["beta_start"], config["beta_end"], config["num_train_timesteps"]
        except (OSError, ValueError, KeyError) as error:
            raise FileError(path, f"no scheduler config with betas ({error}); give the whole folder") from None
        if config.get("beta_schedule") != "scaled_linear":
            raise UnsupportedModel(f"beta_schedule is {config.get('beta_schedule')}, expected scaled_linear")
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
        alphas = (1 - betas).cumprod(0)
        if config.get("rescale_betas_zero_snr"):
            from ..standalone.sampler import zero_terminal

            alphas = zero_terminal(alphas)
        return alphas.float(), config.get("prediction_type") == "v_prediction"

    @torch.no_grad()
    def _moments(self, pixels: Tensor) -> Tensor:
        posterior = self.vae.encode(pixels.to(self.device)).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        pictures: Tensor = self.vae.decode(latents / self.scale).sample
        return pictures.clamp(-1, 1)

    @torch.no_grad()
    def _text(self, captions: Sequence[str]) -> Text:
        hidden, pooled = [], None
        for tokenizer, tower in self.towers:
            ids = tokenizer(
                list(captions), padding="max_length", truncation=True, max_length=77, return_tensors="pt"
            ).input_ids.to(self.device)
            out = tower(ids, output_hidden_states=self.sdxl)
            hidden.append(out.hidden_states[-2] if self.sdxl else out[0])
            pooled = out[0] if self.sdxl else None
        return Text(torch.cat(hidden, dim=-1), pooled)

    def _call(self, x: Tensor, t: Tensor, text: Text, sizes: Sizes | None) -> Tensor:
        added = None
        if self.sdxl:
            pooled, ids = _conditions(text, sizes)
            added = {"text_embeds": pooled.to(self.stored), "time_ids": ids.to(self.device, self.stored)}
        output: Tensor = self.unet(x, t, text.tokens.to(self.stored), added_cond_kwargs=added).sample
        return output

    def besides(self) -> dict[str, nn.Module]:
        return {"autoencoder": self.vae, "text encoder": nn.ModuleList([tower for _, tower in self.towers])}

    def checkpoint_gradients(self) -> None:
        self.unet.enable_gradient_checkpointing()
        self.unet.train()  # diffusers checkpoints in training mode alone
        for module in self.unet.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
