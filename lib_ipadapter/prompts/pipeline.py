"""From a unit to an image prompt. One stage after the other, each with one input and one output:

    resolve      Unit           -> ResolvedUnit   saved references and pictures, with content ids
    preprocess   ResolvedUnit   -> Preprocessed   the encoder's squares
    encode       Preprocessed   -> Features       cached by squares and encoder
    combine      Features       -> Combined       what is projected
    project      Combined       -> Tokens         cached by features and adapter
    image_prompt Tokens         -> ImagePrompt    with the unit's layers, steps and region

The values between are computed when they are needed: a known reference is neither decoded nor encoded nor projected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..adapters.adapter import Adapter
from ..adapters.variant import VariantSpec
from ..attention.region import Region
from ..attention.session import ImagePrompt
from ..encoders.spec import Need
from ..errors import FaceError
from ..faces.analyse import FaceAnalyser
from .combine import combine
from .embeds import Embeds
from .encode import FeatureCache, Features, FeatureSource, check_noise, encode, no_picture
from .faces import FaceSource, check_face_fields, preprocess_faces
from .image_prompt import image_prompt
from .preprocess import Preprocessed, preprocess
from .project import TokenCache, Tokens, project
from .resolve import ResolvedUnit

DEFAULT_BYTES = 256 * 2**20


class Caches:
    """What is kept between jobs: content ids of pictures, features and tokens. limit: bytes of the last two together,
    of which tokens take a quarter at most."""

    def __init__(self, limit: Callable[[], int] = lambda: DEFAULT_BYTES) -> None:
        self.features = FeatureCache(lambda: limit() - limit() // 4)
        self.tokens = TokenCache(lambda: limit() // 4)

    def clear(self) -> None:
        """Frees features and tokens."""
        self.features.clear()
        self.tokens.clear()


class Pipeline:
    """The stages after resolve. source: encodes pictures; caches: may be those of other pipelines too; faces: finds
    and recognises faces, for adapters that take them."""

    def __init__(self, source: FeatureSource, caches: Caches | None = None, faces: FaceAnalyser | None = None) -> None:
        self.source = source if faces is None else FaceSource(source, faces)
        self.faces = faces
        self.caches = caches if caches is not None else Caches()

    def check(self, units: Sequence[ResolvedUnit], spec: VariantSpec) -> None:
        """Raises EncoderError, FaceError if what has to be there is not, and UnitError for fields that faces cannot
        have. Encodes nothing."""
        for unit in units if spec.of_face else ():
            check_face_fields(unit.unit)
        if any(unit.needs_encoder for unit in units):
            for need in spec.needs:
                self._analyser(need)
                self.source.check(need)

    def features(self, resolved: ResolvedUnit, needs: Sequence[Need]) -> Features:
        """Stages 2 and 3. Raises UnitError, ImageError, EncoderError, FaceError, FileError."""
        squares = self._squares(resolved, needs)
        if any(need.of != "picture" for need in squares):
            check_face_fields(resolved.unit)
        else:
            check_noise(resolved.unit, next(iter(squares.values())))
        return encode(squares, self.source, self.caches.features)

    def tokens(self, resolved: ResolvedUnit, adapter: Adapter) -> Tokens:
        """Stages 2 to 5."""
        features = self.features(resolved, adapter.spec.needs)
        weights = [reference.weight for reference in resolved.unit.images]
        combined = combine(resolved.unit.combine, features, weights, adapter.spec.joint)
        return project(combined, adapter, self.caches.tokens, resolved.unit.shortcut)

    def prompt(self, resolved: ResolvedUnit, adapter: Adapter, region: Region | None = None) -> ImagePrompt:
        """Stages 2 to 6: the image prompt of a unit, acting in ``region``."""
        return image_prompt(resolved.unit, adapter, self.tokens(resolved, adapter), region)

    def embeds(self, name: str, resolved: ResolvedUnit, spec: VariantSpec, title: str = "") -> Embeds:
        """The references of a unit to be saved, for adapters like ``spec``."""
        squares = self._squares(resolved, spec.needs)
        features = encode(squares, self.source, self.caches.features)
        return Embeds(
            name,
            title or name,
            tuple(squares),
            resolved.unit.fit,
            tuple(resolved.ids()),
            tuple(reference.weight for reference in resolved.unit.images),
            tuple(reference() for reference in features.references),
            no_picture(squares, self.source, self.caches.features),
        )

    def _squares(self, resolved: ResolvedUnit, needs: Sequence[Need]) -> dict[Need, Preprocessed]:
        for need in needs:
            self._analyser(need)
        needs = [self.source.named(need) for need in needs]
        sides = {need: self.source.side(need) if resolved.needs_encoder else 0 for need in needs}
        found = {need: preprocess(resolved, side) for need, side in sides.items() if need.of == "picture"}
        of_face = {need: side for need, side in sides.items() if need.of != "picture"}
        if of_face:
            found |= preprocess_faces(resolved, of_face, self._analyser(next(iter(of_face))))
        return {need: found[need] for need in sides}

    def _analyser(self, need: Need) -> Any:
        """What finds faces, for a need of one. Raises FaceError."""
        if need.of != "picture" and self.faces is None:
            raise FaceError(f"the adapter takes {need}, and faces cannot be looked for here; choose another adapter")
        return self.faces
