"""A face without what is around it, as PuLID shows it to EVA-CLIP: hair and face in grey, all else white.

The parts are told by BiSeNet (arXiv 1808.00897), by facexlib's code and weights; the WebUI has the code. Source:
ToTheBeginning/PuLID, pipeline.py, get_id_embedding; facexlib, face_restoration_helper.py.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import FaceModelError, FaceModelMissing, FacesUnavailable, FileError, UnsafeFile
from ..files.tensors import open_tensors
from .runtime import cv2

Array = NDArray[Any]
SIDE = 512  # pixels of the crop
# FFHQ's points in it, in the order of align.TEMPLATE
POINTS = np.array([[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935],
                   [201.26117, 371.41043], [313.08905, 371.15118]])  # fmt: skip
_BORDER = (132, 133, 135)  # RGB, outside the picture
_LONGEST = 1024  # side of a picture that is aligned, pixels: larger ones are made smaller first
CLASSES = 19
# What becomes white: background, both ears, ear rings, neck, necklace, cloth, hat
BACKGROUND = (0, 7, 8, 9, 14, 15, 16, 18)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY = (0.299, 0.587, 0.114)
FILE = "parsing_bisenet.pth"
SOURCE = "https://github.com/xinntao/facexlib/releases/download/v0.2.0/parsing_bisenet.pth"
_HINTS = ("bisenet", "parsing", "79999")  # in the names of files that are looked into
_SUFFIXES = (".pth", ".pt", ".safetensors", ".bin")
_KEYS = ("cp.resnet.conv1.weight", "ffm.convblk.conv.weight", "conv_out.conv_out.weight")


def ffhq_crop(picture: Array, points: Array) -> Array:
    """The crop [512, 512, 3] of an RGB picture [H, W, 3] uint8 by the five points of a face [5, 2]. Raises
    FaceModelError for points that no similarity transform takes there."""
    scale = _LONGEST / max(picture.shape[:2])
    if scale < 1:
        height, width = (max(1, int(side * scale)) for side in picture.shape[:2])
        points = np.asarray(points) * [width / picture.shape[1], height / picture.shape[0]]
        picture = cv2().resize(picture, (width, height), interpolation=cv2().INTER_LANCZOS4)
    matrix, _ = cv2().estimateAffinePartial2D(np.asarray(points, np.float64), POINTS, method=cv2().LMEDS)
    if matrix is None:
        raise FaceModelError("the points of the face cannot be aligned; choose another face, or another picture")
    crop: Array = cv2().warpAffine(picture, matrix, (SIDE, SIDE), borderMode=cv2().BORDER_CONSTANT, borderValue=_BORDER)
    return crop


def bare(crop: Array, model: nn.Module) -> Tensor:
    """RGB values [1, 3, S, S] in 0..1 of an RGB crop [S, S, 3] uint8: the face in grey on white."""
    values = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None].float() / 255
    mean, std, grey = (torch.tensor(x).view(1, 3, 1, 1) for x in (_MEAN, _STD, _GREY))
    with torch.no_grad():
        scores: Tensor = model((values - mean) / std)[0]
    around = torch.isin(scores.argmax(1, keepdim=True), torch.tensor(BACKGROUND))
    return torch.where(around, torch.ones_like(values), (values * grey).sum(1, keepdim=True))


class FaceParser:
    """BiSeNet, loaded at the first use, from the first of the folders that holds it. The folders need not exist."""

    def __init__(self, folders: Callable[[], Sequence[Path]]) -> None:
        self._folders = folders
        self._lock = threading.Lock()
        self._model: tuple[Hashable, nn.Module] | None = None
        self._known: dict[Hashable, bool] = {}

    def folders(self) -> list[Path]:
        """Those that are searched: the given ones and facexlib's own."""
        found = None
        with contextlib.suppress(ValueError):  # a module without a spec stands in for it
            found = importlib.util.find_spec("facexlib")
        places = found.submodule_search_locations if found else None
        return [*self._folders(), *(Path(place) / "weights" for place in places or ())]

    def find(self) -> Path:
        """The weight file. Raises FaceModelMissing."""
        for path in self._files():
            if self._is(path):
                return path
        folders = self.folders()
        useless = ", ".join(dict.fromkeys(path.name for path in self._files() if path.name.lower() == FILE))
        broken = f". {useless} is there, but cut off, damaged or another file" if useless else ""
        raise FaceModelMissing(
            f"the face parsing model {FILE} was not found. Download it from {SOURCE} and put it into "
            f"{folders[0] if folders else 'models/insightface'}. Searched: {', '.join(map(str, folders))}{broken}",
            role="parsing",
            folders=[str(folder) for folder in folders],
        )

    def check(self) -> None:
        """Raises FacesUnavailable, FaceModelMissing if faces cannot be parsed."""
        _network()
        self.find()

    def identity(self) -> Hashable:
        """Equal crops give equal values under an equal identity. Raises FaceModelMissing."""
        return _version(self.find())

    def bare(self, crop: Array) -> Tensor:
        """``bare`` by the model, on the CPU. Raises FacesUnavailable, FaceModelMissing, FaceModelError."""
        with self._lock:
            path = self.find()
            version = _version(path)
            if self._model is None or self._model[0] != version:
                self._model = version, _load(path)
            return bare(crop, self._model[1])

    def release(self) -> None:
        """Drops the model."""
        self._model = None

    def _files(self) -> Iterator[Path]:
        for folder in self.folders():
            names = sorted(os.listdir(folder)) if folder.is_dir() else ()
            for name in names:
                if name.lower().endswith(_SUFFIXES) and any(hint in name.lower() for hint in _HINTS):
                    yield folder / name

    def _is(self, path: Path) -> bool:
        """By its keys and shapes, which are looked at once for each version of a file."""
        try:
            version = _version(path)
            if version not in self._known:
                self._known[version] = _is_bisenet(path)
        except (OSError, FileError):  # that may pass: a program that copies or checks it has it open
            return False
        return self._known[version]


def _is_bisenet(path: Path) -> bool:
    """Raises FileError for a file that cannot be opened."""
    try:
        shapes = open_tensors(path).shapes
    except UnsafeFile:
        return False
    return all(key in shapes for key in _KEYS) and shapes[_KEYS[-1]][:1] == (CLASSES,)


def _network() -> Any:
    """facexlib's class. Raises FacesUnavailable."""
    try:
        return importlib.import_module("facexlib.parsing.bisenet").BiSeNet
    except ImportError as error:
        raise FacesUnavailable(
            f"PuLID needs the Python package facexlib, which cannot be imported ({error}). Install it into the WebUI's "
            'environment: pip install "facexlib==0.3.0"',
            package="facexlib",
        ) from error


def _load(path: Path) -> nn.Module:
    model: nn.Module = _network()(num_class=CLASSES)
    file = open_tensors(path)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = [key for key, shape in wanted.items() if file.shapes.get(key) != shape]
    wrong += [key for key in file.shapes if key not in wanted]
    if wrong:
        raise FaceModelError(
            f"{path.name}: {len(wrong)} keys missing, misshapen or left over ({', '.join(wrong[:4])}), expected "
            f"facexlib's {FILE}; download it again",
            file=path.name,
        )
    tensors: Mapping[str, Tensor] = file.tensors(list(wanted))
    broken = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise FaceModelError(
            f"{path.name}: NaN or infinite weights in {', '.join(broken[:4])}; download it again", file=path.name
        )
    model.load_state_dict(dict(tensors))
    return model.float().eval().requires_grad_(False)


def _version(path: Path) -> Hashable:
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size
