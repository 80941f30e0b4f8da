"""Adapters and encoders on the user's disk: their names, what each file is, and what is cached between jobs."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.call_queue import queue_lock
from PIL import Image
from torch import nn

from ..adapters import inspect as inspection
from ..adapters.adapter import Adapter
from ..adapters.file import open_adapter
from ..adapters.variant import VariantSpec, identify_file
from ..attention.keyvalue import Projected
from ..attention.layers import Layer, check_fit, cross_attention_layers
from ..cache import LRU, Cache
from ..controlnet.files import ControlNets
from ..encoders import Catalog, EncoderPool, EncoderSource, register_archs
from ..encoders.fetch import download_encoder
from ..encoders.source import identity
from ..errors import EncoderError, IPAdapterError, UnsupportedModel, WrongBase
from ..faces import FaceAnalyser, FacePacks, FaceParser, choose
from ..faces.fetch import download_pack
from ..faces.packs import RECOGNISERS
from ..files.library import Library
from ..pictures.picture import Pictures
from ..prompts.embeds import Embeds
from ..prompts.faces import name_of
from ..prompts.pipeline import Caches, Pipeline
from ..prompts.pose import array_of, drawn
from ..prompts.resolve import ResolvedUnit, resolve
from ..unit import Unit
from ..unit.face import ALL
from ..unit.presets import Presets
from . import fetch, settings
from .bounds import check as check_request
from .bounds import check_pixels
from .describe import control_of, description_of
from .hosts import Host
from .log import logger
from .passes import layers_in
from .pictures import as_base64
from .store import HostStore

if TYPE_CHECKING:
    from ..evaluation.runs.evaluations import Evaluations
    from ..training.runs.runs import Runs


class Models:
    """One per process; survives "Reload UI". Nothing is read from disk before it is needed."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.library = Library()
        self.pool = EncoderPool(host.say)
        self.catalog = Catalog(host.encoder_folders)
        self.faces = FaceAnalyser(FacePacks(host.face_folders), parser=FaceParser(host.parsing_folders))
        self.controls = ControlNets(host.control_folders, settings.control_stays, host.leaves, host.reserve, host.say)
        self.caches = Caches(settings.cache_bytes)
        self.pictures = Pictures(fetch.data, settings.cache_bytes)
        # K' and V' on the device that samples, so that a detail or a tile projects and uploads nothing again
        self.projected: Cache[Projected] = Cache(settings.projected_bytes, lambda entry: entry.nbytes)
        self._listed = False
        self._runs: Runs | None = None
        self._evaluations: Evaluations | None = None
        self._units = 1  # of the last job
        self._last = ""  # adapter that the panel showed
        self._layers: tuple[Callable[[], nn.Module | None], list[Layer]] = (lambda: None, [])  # of the loaded UNet
        self._adapters: LRU[Adapter] = LRU(lambda: max(settings.cached_adapters(), self._units))
        self._coming: LRU[list[Layer]] = LRU(lambda: 8)  # of checkpoints' files
        self._specs: LRU[VariantSpec] = LRU(lambda: 256)

    # names and files

    def register_archs(self) -> None:
        """Registers custom text towers, before the WebUI loads a model that has one. Never raises."""
        try:
            for name in register_archs(self.host.text_tower_folders()):
                logger.info("registered the text tower %s", name)
        except Exception as error:  # nothing here may keep the WebUI from starting
            logger.warning("could not register text towers: %s", error)

    def refresh(self) -> None:
        """Lists adapters and encoders again; those of trainings that are over are among them."""
        if (self.host.home() / "training").is_dir():  # else the trainer's modules are not imported for nothing
            self.runs().publish()
        self.library.refresh(self.host.adapter_folders())
        self.catalog.refresh()
        self._listed = True

    def wait(self) -> None:
        """Until the WebUI has done what it does now: loading a checkpoint, or a job."""
        with queue_lock:
            pass

    def unload(self) -> None:
        """The WebUI's model leaves the device, once what it does now is done: loading a checkpoint, or a job."""
        with queue_lock:
            self.host.unload()

    def model_names(self) -> list[str]:
        """The adapters' names."""
        if not self._listed:
            self.refresh()
        return self.library.names()

    def find(self, model: str) -> Path:
        """The file of an adapter's name; a file added since the last listing is found too."""
        self.model_names()
        with contextlib.suppress(IPAdapterError):
            path = self.library.find(model)
            if path.is_file():
                return path
        self.refresh()
        return self.library.find(model)

    def presets(self) -> Presets:
        """The saved presets."""
        return Presets(self.host.home() / "presets")

    def runs(self) -> Runs:
        """The trainings below the folder of adapters."""
        home = self.host.home()
        if self._runs is None or self._runs.shelf != home:
            from ..training.runs.runs import Runs

            self._runs = Runs(home / "training", home)
            self._runs.beside = lambda: (self.evaluations(),)
        return self._runs

    def evaluations(self) -> Evaluations:
        """The evaluations below the folder of adapters. Neither of the two starts while one of the other runs."""
        root = self.host.home() / "evaluations"
        if self._evaluations is None or self._evaluations.root != root:
            from ..evaluation.runs.evaluations import Evaluations

            self._evaluations = Evaluations(root)
            self._evaluations.beside = lambda: (self.runs(),)
        return self._evaluations

    def shelf(self) -> HostStore:
        """Saved embeds and folders of pictures."""
        return HostStore(self.host.home(), self._embeds)

    def _embeds(self, name: str, given: Mapping[str, Any], title: str) -> Embeds:
        fields = {"fit": settings.default_fit(), **self.presets().over(given), "enabled": True}
        check_request([fields])
        resolved = self.resolve(Unit.parse(fields))
        spec = self.adapter(resolved.unit.model).spec.as_kind(resolved.unit.kind)
        with queue_lock, self.encoding():
            return self.pipeline().embeds(name, resolved, spec, title)

    # what a file is

    def spec(self, path: Path) -> VariantSpec:
        """The adapter's spec; its header is read once. Which encoder it needs where it does not say, is the catalog's
        to tell, at each use."""

        def read() -> VariantSpec:
            file = open_adapter(path)
            return identify_file(file)

        return self._specs.get(identity(path), read)

    def inspect(self, model: str) -> dict[str, Any]:
        """What ``inspect --json`` prints for one file, without its folder; the encoder by those on the disk."""
        path = self.find(model)
        spec = self.spec(path)
        return inspection.report(path) | ({} if spec.of_face else {"encoder": self._encoder_name(spec)})

    def fits(self, model: str) -> bool | None:
        """Whether an adapter fits the checkpoint of the next job; None if that or the file is not known."""
        try:
            layers = self._layers_of_next()
            if not layers:
                return None
            check_fit(self.spec(self.find(model)), layers, model)
        except (WrongBase, UnsupportedModel):
            return False
        except (IPAdapterError, OSError):
            return None
        return True

    def _layers_of_next(self) -> list[Layer]:
        """Of the next job's UNet, [] if it is not known."""
        if coming := self.host.coming():
            return self._coming.get(identity(coming.path), lambda: layers_in(coming.shapes() or {}))
        unet = self.host.loaded_unet()
        return [] if unet is None else self._layers_of(unet)

    def _layers_of(self, unet: nn.Module) -> list[Layer]:
        if self._layers[0]() is not unet:
            # Without the modules: nothing here may keep an unloaded model in memory.
            found = cross_attention_layers(unet)
            layers = [replace(layer, module=None, block=None, self_attention=None) for layer in found]
            self._layers = weakref.ref(unet), layers
        return self._layers[1]

    def by_fit(self) -> list[str]:
        """The adapters' names, those that do not fit the checkpoint last."""
        return sorted(self.model_names(), key=lambda name: self.fits(name) is False)

    def used(self, model: str) -> None:
        """The panel shows this adapter; it is suggested next."""
        self._last = model

    def suggested(self) -> str:
        """The adapter for a unit that has none: the last one, if it fits; else the only one that fits; else ""."""
        if self._last and self.fits(self._last) is not False:
            return self._last
        names = [name for name in self.model_names() if self.fits(name)]
        return names[0] if len(names) == 1 else ""

    def base(self, model: str) -> str:
        """The base model of an adapter, "" if its file cannot be used."""
        try:
            return self.spec(self.find(model)).base
        except (IPAdapterError, OSError):
            return ""

    def describe(self, model: str) -> dict[str, Any]:
        """What the panel shows next to the model; never raises IPAdapterError."""
        try:
            spec = self.spec(self.find(model))
        except IPAdapterError as failure:
            return {"title": model, "base": "", "encoder": "", "encoder_found": False, "error": str(failure),
                    "text": str(failure), "fits": None, "checkpoint": ""}  # fmt: skip
        found = description_of(spec, self._encoder_name(spec), self.source(), self.faces)
        return {
            **found,
            **control_of(spec, self.controls),
            "fits": self.fits(model),
            "checkpoint": coming.name if (coming := self.host.coming()) else self.host.checkpoint_name(),
        }

    def _encoder_name(self, spec: VariantSpec) -> str:
        """Of the CLIP encoder, "" if it takes none."""
        need = next((need for need in spec.needs if not need.is_face), None)
        try:
            return self.catalog.name_of(need) if need else ""
        except EncoderError:
            return need.encoder if need else ""

    def takes_faces(self, model: str) -> bool:
        """Whether an adapter takes faces; False for a file that cannot be used."""
        try:
            return self.spec(self.find(model)).of_face
        except (IPAdapterError, OSError):
            return False

    def takes_pose(self, model: str) -> bool:
        """Whether a ControlNet on keypoints goes with an adapter; False for a file that cannot be used."""
        try:
            return self.spec(self.find(model)).posed
        except (IPAdapterError, OSError):
            return False

    def find_faces(self, picture: Any, choice: str = ALL, target: tuple[int, int] | None = None) -> dict[str, Any]:
        """The faces of a picture as a request or the panel gives it, from the left; and the keypoint picture of those
        chosen, as base64 of a PNG, in the size ``target`` or the picture's own. Raises ImageError, FaceError,
        UnitError."""
        given = self.pictures.reference(picture, "image")
        image = given.image()
        found = sorted(self.faces.faces(image, name_of(given)), key=lambda face: face.centre[0])
        chosen = found if choice == ALL else [choose(found, choice, image.size)]
        return {
            "width": image.width, "height": image.height, "faces": [asdict(face) for face in found],
            "keypoints": as_base64(drawn(array_of(chosen), image.size, target or image.size)),
        }  # fmt: skip

    def encoder_size(self, model: str) -> int:
        """Side in pixels of the encoder's input; 224 when the encoder is not known."""
        try:
            need = self.spec(self.find(model)).needs[-1]
            return self.catalog.spec(self.catalog.name_of(need)).image_size
        except IPAdapterError:
            return 224

    def download(self, name: str, progress: Callable[[int, int | None], None]) -> Path:
        """Downloads an encoder, or the face models of a pack."""
        if name in RECOGNISERS:
            return download_pack(name, self.host.face_folders()[0] / "models", progress)
        return download_encoder(name, self.host.encoder_folders()[0], progress)

    # loaded adapters, features and tokens

    def expect(self, units: int) -> None:
        """A job with so many units comes: that many adapters stay open."""
        self._units = units

    def adapter(self, model: str) -> Adapter:
        """The adapter of that name, loaded."""
        path = self.find(model)
        return self._adapters.get(identity(path), lambda: Adapter.load(path))

    def resolve(self, unit: Unit) -> ResolvedUnit:
        """The unit's pictures. Raises UnitError, FileError, ImageError."""
        pixels = 0

        def allow(image: Image.Image) -> None:
            nonlocal pixels
            pixels = check_pixels([image], pixels)

        return resolve(unit, self.shelf(), self.pictures, allow)

    def source(self) -> EncoderSource:
        """Encodes pictures, on the device and in the dtype of the moment."""
        device, dtype = self.host.device_and_dtype()
        return EncoderSource(self.catalog, self.pool, device, dtype)

    def pipeline(self) -> Pipeline:
        """Pictures to prompts; one for each job."""
        return Pipeline(self.source(), self.caches, self.faces)

    def encoding(self) -> AbstractContextManager[None]:
        """Around encoding: the host makes room on the device when the encoder is first needed, and the encoder leaves
        it afterwards, unless the setting keeps it there."""
        return self.pool.room(self.host.room, settings.encoder_stays())

    def release(self) -> None:
        """Frees what is cached."""
        self.pool.release()
        self.faces.release()
        self.controls.release()
        self._adapters.clear()
        self.caches.clear()
        self.pictures.forget()
        self.projected.clear()
