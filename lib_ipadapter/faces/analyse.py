"""From a picture to its faces and their embeddings, each analysed once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..cache import LRU
from ..errors import FaceMissing, UnitError
from ..pictures.images import content_hash
from ..unit.face import CHOICE_EXPECTED
from .detect import Detector, Face
from .packs import DETECTOR, FacePacks, ModelFile
from .parsing import FaceParser
from .recognise import Recogniser
from .runtime import available

Array = NDArray[Any]
T = TypeVar("T")
_WITH_MARGIN = 2048  # longer side of a picture that gets a margin, pixels
# A face that fills the picture is missed at 640: then at both sizes together, then with a white margin
PASSES: tuple[tuple[str, tuple[int, ...], float], ...] = (
    ("at 640 pixels", (640,), 0.0),
    ("at 128 and 640 pixels", (128, 640), 0.0),
    ("with a white margin", (128, 640), 0.5),
)


def choose(faces: Sequence[Face], choice: str | int, size: tuple[int, int], field: str = "face") -> Face:
    """One of the faces (at least one) of a picture of (width, height). field: names the choice in errors. Raises
    UnitError."""
    if isinstance(choice, str) and choice.isdecimal():
        choice = int(choice)
    if isinstance(choice, int) and not isinstance(choice, bool):
        ordered = sorted(faces, key=lambda face: face.centre[0])
        if not 0 <= choice < len(ordered):
            raise UnitError(field, choice, f"a number below {len(ordered)}, the faces in the picture")
        return ordered[choice]
    middle = size[0] / 2, size[1] / 2
    ranks: dict[str, Callable[[Face], float]] = {
        "largest": lambda face: -face.area,
        "leftmost": lambda face: face.centre[0],
        "rightmost": lambda face: -face.centre[0],
        "topmost": lambda face: face.centre[1],
        "centre": lambda face: float(np.hypot(face.centre[0] - middle[0], face.centre[1] - middle[1])),
    }
    if choice not in ranks:
        raise UnitError(field, choice, CHOICE_EXPECTED)
    return min(faces, key=ranks[str(choice)])


class FaceAnalyser:
    """Detector and recognisers behind a cache; models are loaded at the first use, one thread at a time."""

    def __init__(
        self, packs: FacePacks, entries: Callable[[], int] = lambda: 512, parser: FaceParser | None = None
    ) -> None:
        """parser: by default one that looks into the folders of the packs."""
        self.packs = packs
        self.parser = FaceParser(packs.folders) if parser is None else parser
        self.runs = 0  # of the detector, for tests and benchmarks
        self._lock = threading.RLock()
        self._detector: tuple[Hashable, Detector] | None = None
        self._recognisers: dict[str, tuple[Hashable, Recogniser]] = {}
        self._faces: LRU[tuple[Face, ...]] = LRU(entries)
        self._embeddings: LRU[Array] = LRU(entries)
        self._kept: LRU[Any] = LRU(entries)

    def faces(self, picture: Image.Image, name: str = "the picture") -> tuple[Face, ...]:
        """The faces of an RGB picture, best score first, at least one. Raises FaceMissing, FaceModelError,
        FaceModelMissing, FacesUnavailable."""
        with self._lock:
            detector, version = self._load_detector()
            found = self._faces.get((content_hash(picture), version), lambda: self._look(detector, picture))
        if not found:
            tried = ", ".join(what for what, _, _ in PASSES)
            raise FaceMissing(
                f"no face was found in {name} ({picture.width} x {picture.height} pixels; tried {tried}). Use a "
                "picture in "
                "which the whole face is seen from the front, larger than a tenth of the picture",
                picture=name,
            )
        return found

    def kept(self, key: Hashable, find: Callable[[], T]) -> T:
        """What ``find`` gives for that key with this detector, kept for the next time. Raises FaceModelMissing."""
        found: T = self._kept.get((key, self.identity(DETECTOR)), find)
        return found

    def embedding(self, picture: Image.Image, face: Face, recogniser: str) -> Array:
        """The raw embedding [512] float32 of a face by the recogniser of that name. Raises as ``faces``."""
        with self._lock:
            model, version = self._load_recogniser(recogniser)
            key = content_hash(picture), face, version
            return self._embeddings.get(key, lambda: model.embedding(np.asarray(picture), face))

    def of_crop(self, crop: Image.Image, recogniser: str) -> Array:
        """The raw embedding [512] float32 of an aligned crop of 112 x 112 pixels. Raises as ``faces``."""
        with self._lock:
            return self._load_recogniser(recogniser)[0].of_crop(np.asarray(crop))

    def check(self, recogniser: str) -> None:
        """Raises FacesUnavailable, FaceModelMissing if faces cannot be found, or not be recognised by that pack."""
        available()
        for role in (recogniser, DETECTOR):  # the first names its pack, which has both
            self.packs.find(role)

    def identity(self, role: str) -> Hashable:
        """Equal pictures have equal faces, or embeddings, under an equal identity. Raises FaceModelMissing."""
        return _version(self.packs.find(role))

    def _look(self, detector: Detector, picture: Image.Image) -> tuple[Face, ...]:
        self.runs += 1
        for _, sizes, margin in PASSES:
            if not margin:
                if found := detector.faces(np.asarray(picture), sizes):
                    return tuple(found)
                continue
            # Of 100 megapixels a margin would make 400; the detector sees 640 pixels of them.
            scale = min(1.0, _WITH_MARGIN / max(picture.size))
            size = tuple(max(1, round(side * scale)) for side in picture.size)
            small = picture if scale == 1 else picture.resize(size, Image.Resampling.BILINEAR)
            x, y = round(margin * small.width), round(margin * small.height)
            shown = Image.new("RGB", (small.width + 2 * x, small.height + 2 * y), "white")
            shown.paste(small, (x, y))
            if found := detector.faces(np.asarray(shown), sizes):
                by = picture.width / small.width, picture.height / small.height
                return tuple(face.moved(-x, -y).scaled(*by) for face in found)
        return ()

    def _load_detector(self) -> tuple[Detector, Hashable]:
        file = self.packs.find(DETECTOR)
        version = _version(file)
        if self._detector is None or self._detector[0] != version:
            self._detector = version, Detector(file.read(), file.label)
        return self._detector[1], version

    def _load_recogniser(self, name: str) -> tuple[Recogniser, Hashable]:
        file = self.packs.find(name)
        version = _version(file)
        loaded = self._recognisers.get(name)
        if loaded is None or loaded[0] != version:
            loaded = self._recognisers[name] = version, Recogniser(file.read(), file.label)
        return loaded[1], version

    def release(self) -> None:
        """Drops the models and what was cached."""
        with self._lock:
            self._detector = None
            self._recognisers.clear()
            self._faces.clear()
            self._embeddings.clear()
            self._kept.clear()
            self.parser.release()


def _version(file: ModelFile) -> Hashable:
    status = file.path.stat()
    return str(file.path), file.member, status.st_mtime_ns, status.st_size
