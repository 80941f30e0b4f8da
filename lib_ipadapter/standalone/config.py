"""The yaml beside a checkpoint, read safely: only the listed classes are built from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FileError, UnsupportedModel
from ..files.disk import read_text
from ..runs.yaml_text import NotYaml, plain

MODEL = ("ldm.models.diffusion.ddpm.LatentDiffusion",)
UNET = ("ldm.modules.diffusionmodules.openaimodel.UNetModel",)
AUTOENCODER = ("ldm.models.autoencoder.AutoencoderKL",)
OPEN_CLIP = "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder"
TRANSFORMERS = "ldm.modules.encoders.modules.FrozenCLIPEmbedder"
TEXT = (TRANSFORMERS, OPEN_CLIP)


@dataclass(frozen=True)
class Config:
    """What a yaml says. unet, autoencoder, text: constructor arguments of the parts; text_target: TEXT's entry."""

    unet: dict[str, Any]
    autoencoder: dict[str, Any]
    embed_dim: int
    text_target: str
    text: dict[str, Any]
    folder: Path  # of the yaml, where a config of the text tower may lie
    parameterization: str  # "eps" or "v"
    timesteps: int
    linear_start: float
    linear_end: float
    scale_factor: float
    size_width: int = 0  # SDXL: of the embedding of each of its six size conditions
    zero_snr: bool = False  # zero terminal SNR (arXiv 2305.08891)

    @property
    def sdxl(self) -> bool:
        """Whether the UNet has SDXL's conditions."""
        return self.size_width > 0


def read_config(path: Path | str) -> Config:
    """Raises FileError (unreadable, no such fields) or UnsupportedModel (a class that is not on the list)."""
    path = Path(path)
    params = _params(_section(plain_yaml(path), "model", path), MODEL, "model", path)
    unet = _params(_section(params, "unet_config", path), UNET, "unet_config", path)
    stage = _params(_section(params, "first_stage_config", path), AUTOENCODER, "first_stage_config", path)
    text = _section(params, "cond_stage_config", path)
    try:
        config = Config(
            unet={**unet, "use_checkpoint": False},  # it trades time for memory of gradients
            autoencoder=dict(_section(stage, "ddconfig", path)),
            embed_dim=int(stage["embed_dim"]),
            text=_params(text, TEXT, "cond_stage_config", path),
            text_target=text["target"],
            folder=path.parent,
            parameterization=str(params.get("parameterization", "eps")),
            timesteps=int(params.get("timesteps", 1000)),
            linear_start=float(params["linear_start"]),
            linear_end=float(params["linear_end"]),
            scale_factor=float(params.get("scale_factor", 1.0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(path, f"a field is missing or no number ({error}); use the yaml of the checkpoint") from None
    return _supported(config, path)


def _supported(config: Config, path: Path) -> Config:
    if config.parameterization not in ("eps", "v"):
        raise UnsupportedModel(f"{path.name}: parameterization is {config.parameterization}, expected eps or v")
    if config.unet.get("in_channels") != config.unet.get("out_channels"):
        raise UnsupportedModel(
            f"{path.name}: a UNet of {config.unet.get('in_channels')} input channels (inpainting, depth or "
            "instruct-pix2pix), expected 4; use a text-to-image checkpoint, masks work with it as well"
        )
    return config


def plain_yaml(path: Path) -> Any:
    """What is in a yaml file. Raises FileError."""
    import yaml

    try:
        text = read_text(path)
    except FileError as error:
        raise FileError(path, f"{str(error).removeprefix(f'{path.name}: ')}; give the checkpoint's yaml") from None
    try:
        return plain(lambda: yaml.safe_load(text))
    except NotYaml:
        raise FileError(path, "not a plain yaml file; give the checkpoint's yaml") from None


def _section(parent: Any, name: str, path: Path) -> Mapping[str, Any]:
    found = parent.get(name) if isinstance(parent, Mapping) else None
    if not isinstance(found, Mapping):
        raise FileError(path, f"has no section {name}; give the yaml of an SD1.x or SD2.x checkpoint")
    return found


def _params(section: Mapping[str, Any], allowed: tuple[str, ...], name: str, path: Path) -> dict[str, Any]:
    target, params = section.get("target"), section.get("params") or {}
    if target not in allowed:
        raise UnsupportedModel(f"{path.name}: {name} is {str(target)[:120]}, expected {' or '.join(allowed)}")
    if not isinstance(params, Mapping):
        raise FileError(path, f"params of {name} are no mapping; give the yaml of the checkpoint")
    return dict(params)
