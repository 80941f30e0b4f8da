"""The metric model: an open_clip CLIP with both towers, pictures and texts to unit vectors."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..adapters.file import sha256
from ..encoders.files import opened
from ..encoders.spec import CLIP_MEAN, CLIP_STD
from ..encoders.timm_tower import shapes_only
from ..errors import BrokenEncoder, FileError
from ..files.disk import read_text
from ..pictures import images

BATCH = 32
QUICK = "-quickgelu"
VOCABULARY = 49408  # of open_clip's own tokeniser


class Metric(Protocol):
    """What measures pictures against pictures and texts."""

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any size to unit vectors [B, E], float32 on the CPU."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to unit vectors [B, E], float32 on the CPU."""

    def settings(self) -> dict[str, Any]:
        """What it is, JSON-safe."""


class Clip:
    """``Metric`` by open_clip's own model. Built by ``load``."""

    def __init__(self, model: Any, config: dict[str, Any], path: Path, device: torch.device) -> None:
        pixels = config.get("preprocess_cfg", {})
        self.model = model.eval().requires_grad_(False).to(device)
        self.path, self.device = path, device
        self.size = int(config["vision_cfg"]["image_size"])
        self.length = int(config["text_cfg"].get("context_length", 77))
        self.mean, self.std = (
            torch.tensor(pixels.get(key, default)).view(1, 3, 1, 1)
            for key, default in (("mean", CLIP_MEAN), ("std", CLIP_STD))
        )
        self._settings = {"file": path.name, "sha256": sha256(path), "image_size": self.size}

    @classmethod
    def load(cls, path: Path | str, arch: str | None = None, device: torch.device | str = "cpu") -> Clip:
        """The CLIP in ``path`` (open_clip's keys), of open_clip's architecture ``arch``, or of the config in
        the JSON file of the same name beside it. Raises FileError, BrokenEncoder, EncoderMissing, UnsafeFile."""
        path = Path(path)
        config = _config(path, arch)
        state = _state(path)
        with shapes_only():
            _check(_build(config, path), state, path)
        model = _build(config, path)
        model.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
        return cls(model, config, path, torch.device(device))

    def settings(self) -> dict[str, Any]:
        """File, hash, and the side that pictures are brought to."""
        return dict(self._settings)

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """The middle square of each, normalised: [B, 3, S, S]."""
        squares = [np.array(images.fit(picture, self.size, "crop"), dtype=np.float32) for picture in pictures]
        values = torch.from_numpy(np.stack(squares) / 255.0).permute(0, 3, 1, 2)
        return (values - self.mean) / self.std

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[B, E]"""
        return self._batched(pictures, lambda part: self.model.encode_image(self.pixels(part).to(self.device)))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """[B, E]; longer texts are cut at the tower's length, as open_clip does."""
        from open_clip.tokenizer import tokenize

        return self._batched(
            texts, lambda part: self.model.encode_text(tokenize(list(part), self.length).to(self.device))
        )

    def _batched(self, values: Sequence[Any], embed: Any) -> Tensor:
        parts = [embed(values[i : i + BATCH]).float().cpu() for i in range(0, len(values), BATCH)]
        whole = torch.cat(parts)
        if not whole.isfinite().all():
            raise BrokenEncoder(f"{self.path.name}: its embeddings have NaN in them; download or train it again")
        return F.normalize(whole, dim=-1)


def _config(path: Path, arch: str | None) -> dict[str, Any]:
    import open_clip

    if arch is not None:
        known: dict[str, Any] | None = open_clip.get_model_config(arch)
        plain = open_clip.get_model_config(arch.removesuffix(QUICK)) if known is None else None
        if arch.endswith(QUICK) and plain is not None:  # older releases have no config of its own for it
            known = {**plain, "quick_gelu": True}
        if known is None:
            raise FileError(path, f"--clip-arch {arch}: expected one of {', '.join(open_clip.list_models())}")
        return known
    beside = path.with_suffix(".json")
    try:
        config = json.loads(read_text(beside))
        config = {**config, **config.get("model_cfg", {})}  # open_clip's own hub layout
        _ = config["embed_dim"], config["vision_cfg"]["image_size"], config["text_cfg"]["width"]
    except FileError as error:
        if os.path.isfile(beside):
            raise FileError(beside, str(error).removeprefix(f"{beside.name}: ")) from None
        raise FileError(
            path, f"no {beside.name} beside it; put the open_clip config there, or give --clip-arch"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FileError(beside, "no open_clip config (embed_dim, vision_cfg, text_cfg)") from None
    if "model_cfg" not in config:
        open_clip.add_model_config(beside)  # a checkpoint's text tower may be of the same architecture
    return config


def _build(config: dict[str, Any], path: Path) -> Any:
    import open_clip

    text = config["text_cfg"]
    foreign = "hf_model_name" in text or "hf_tokenizer_name" in text
    words = text.get("vocab_size", VOCABULARY)
    if foreign or not isinstance(words, int) or words < VOCABULARY:
        raise BrokenEncoder(
            f"{path.name}: its text tower is not of open_clip's own making; use a CLIP with open_clip's tokeniser"
        )
    names = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    with torch.random.fork_rng(devices=[]):  # its random weights are not kept, nor shall they be noticed
        try:
            return kind(**{name: config[name] for name in names if name in config})
        except Exception as error:  # a foreign config may be anything
            raise BrokenEncoder(
                f"{path.name}: open_clip cannot build its config: {error or type(error).__name__}"
            ) from None


def _state(path: Path) -> dict[str, Tensor]:
    with opened(path) as (shapes, read):
        state = {key: read(key) for key in shapes}
    for prefix in ("state_dict.", "module."):
        if any(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: v for key, v in state.items() if key.startswith(prefix)}
    return {key: value for key, value in state.items() if key.rpartition(".")[2] != "attn_mask"}


def _check(model: Any, state: dict[str, Tensor], path: Path) -> None:
    """Raises BrokenEncoder where a weight is missing, as random ones would give random scores, or left over."""
    own = {key: v.shape for key, v in model.state_dict().items() if key.rpartition(".")[2] != "attn_mask"}
    wrong = {
        "missing": [key for key in own if key not in state],
        "unknown": [key for key in state if key not in own],
        "of another shape": [key for key in own if key in state and state[key].shape != own[key]],
    }
    if any(wrong.values()):
        differences = "; ".join(f"{len(keys)} keys {what} ({keys[0]}, ...)" for what, keys in wrong.items() if keys)
        raise BrokenEncoder(
            f"{path.name}: does not fit its architecture: {differences}. Expected open_clip's layout with both towers"
        )
