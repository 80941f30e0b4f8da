"""A second recogniser that the adapter never saw: dlib's ResNet of 29 layers, as face-api.js carries it.

Its weights are a file, most of 8-bit numbers, with a list of names, shapes and ranges beside (TensorFlow.js's format).
The network is face-api.js's FaceRecognitionNet: 150 x 150 pixels to 128 numbers; two pictures of one person are close.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIDE = 150  # pixels of the crop
MEAN = (122.782, 117.001, 104.298)  # of RGB, 0..255
SCALE = 256.0
# Residual blocks in their order; those that end in down halve the sides
BLOCKS = (
    "conv32_1", "conv32_2", "conv32_3", "conv64_down", "conv64_1", "conv64_2", "conv64_3", "conv128_down", "conv128_1",
    "conv128_2", "conv256_down", "conv256_1", "conv256_2", "conv256_down_out",
)  # fmt: skip


def weights_of(manifest: str, content: bytes) -> dict[str, Tensor]:
    """The tensors of TensorFlow.js's manifest and its one file, by name, in float32; kernels as torch has them. Raises
    ValueError where they do not fit."""
    found, at = {}, 0
    for entry in json.loads(manifest)[0]["weights"]:
        count, coding = int(np.prod(entry["shape"])), entry.get("quantization")
        raw = content[at : at + count * (1 if coding else 4)]
        at += count * (1 if coding else 4)
        if at > len(content):
            raise ValueError(f"{len(content)} bytes, too few for {entry['name']}")
        values = np.frombuffer(raw, np.uint8 if coding else np.float32).astype(np.float32)
        if coding:
            values = values * np.float32(coding["scale"]) + np.float32(coding["min"])
        value = torch.from_numpy(values).reshape(entry["shape"])
        found[entry["name"]] = value.permute(3, 2, 0, 1).contiguous() if value.ndim == 4 else value
    if at != len(content):
        raise ValueError(f"{len(content)} bytes, expected {at}")
    return found


class Judge:
    """The network."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    @torch.no_grad()
    def embeddings(self, crops: Sequence[Image.Image]) -> Tensor:
        """Aligned RGB crops of SIDE pixels to vectors of length 1, [B, 128]."""
        pixels = torch.from_numpy(np.stack([np.asarray(crop, np.float32) for crop in crops])).permute(0, 3, 1, 2)
        x = (pixels - torch.tensor(MEAN)[:, None, None]) / SCALE
        x = F.max_pool2d(self._conv(x, "conv32_down", 2).relu(), 3, 2)
        for block in BLOCKS:
            x = self._residual(x, block)
        return F.normalize(x.mean((2, 3)) @ self.weights["fc"], dim=-1)

    def _residual(self, x: Tensor, name: str) -> Tensor:
        down = "down" in name
        out = self._conv(x, f"{name}/conv1", 2 if down else 1).relu()
        out = self._conv(out, f"{name}/conv2", 1)
        if down:
            x = F.avg_pool2d(x, 2, 2)
            short = [wide - own for wide, own in zip(x.shape[2:], out.shape[2:], strict=True)]
            out = F.pad(out, (0, short[1], 0, short[0]))
            x = F.pad(x, (0, 0, 0, 0, 0, out.shape[1] - x.shape[1]))
        return (out + x).relu()

    def _conv(self, x: Tensor, name: str, stride: int) -> Tensor:
        kernel, bias = self.weights[f"{name}/conv/filters"], self.weights[f"{name}/conv/bias"]
        x = F.conv2d(x, kernel, bias, stride, "valid" if stride > 1 else "same")
        scale, shift = (self.weights[f"{name}/scale/{part}"][:, None, None] for part in ("weights", "biases"))
        return x * scale + shift
