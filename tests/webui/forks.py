"""Forge and reForge in a process of their own, as harness.WebUI is the WebUI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tests.synthetic import SD1_WIDTHS, SDXL_WIDTHS, adapter_tensors, write_adapter

from .harness import Reply, WebUI, cache, decode, hash_of
from .networks import EMBED, write_lora

# Named for what they do; the hosts have no --no-half, and find their model's config in its shapes.
FLAGS = [
    "--skip-prepare-environment", "--skip-torch-cuda-test", "--always-cpu", "--all-in-fp32", "--api",
    "--do-not-download-clip", "--no-download-sd-model", "--no-hashing", "--disable-console-progressbars",
]  # fmt: skip
FOLDERS = {
    "forge": "stable-diffusion-webui-forge",
    "reforge": "stable-diffusion-webui-reforge",
    "classic": "sd-webui-forge-classic",
}


def checkout(host: str) -> Path:
    """Where a fork is expected."""
    return Path(os.environ.get(f"{host.upper()}_DIR", f"~/{FOLDERS[host]}")).expanduser()


def absent(host: str) -> str:
    """Why a fork cannot be started here, or ''."""
    if not (checkout(host) / "launch.py").is_file():
        return f"no {host} at {checkout(host)} (set {host.upper()}_DIR)"
    return "" if python(host).is_file() else f"no Python at {python(host)}"


def python(host: str) -> Path:
    """A fork's own Python."""
    return checkout(host) / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def couple() -> Path:
    """A checkout of sd-forge-couple."""
    return Path(os.environ.get("FORGE_COUPLE_DIR", "~/sd-forge-couple")).expanduser()


def made(name: str, script: str) -> Path:
    """A file that ``script`` of this folder writes, kept between runs."""
    source = Path(__file__).with_name(script)
    path = cache() / f"{name}-{hash_of(source.read_bytes())}.safetensors"
    if not path.is_file():
        part = path.with_name(f"part-{os.getpid()}-{path.name}")
        subprocess.run([sys.executable, str(source), str(part)], check=True, capture_output=True)
        part.replace(path)
    return path


class Fork(WebUI):
    """A running fork; a context manager."""

    loaded = ""  # a model is loaded by the first job
    shape = ("sd15", "real_checkpoint.py")  # random, of the real shape: forks know models by it
    context, widths, inner = 768, SD1_WIDTHS, 768

    def __init__(self, host: str, extra: tuple[str, ...] = ("--nowebui",), **more: Any) -> None:
        super().__init__(("sd1",), extra, **more)
        self.host = host
        self.defaults = {"steps": 2}  # the model is of SD1.5's real width
        # gradio 4 serves a page's scripts from folders that are named.
        known = [flag for flag in FLAGS if host != "classic" or flag != "--do-not-download-clip"]
        self.flags = [*known, "--gradio-allowed-path", str(checkout(host))]

    @property
    def program(self) -> tuple[Path, Path]:
        """The checkout and its Python."""
        return checkout(self.host), python(self.host)

    def _start(self) -> None:
        """reForge loads its model in a thread beside that of the API, and now and then one trips the other up."""
        try:
            super()._start()
        except RuntimeError:
            if "SystemError" not in self.log:
                raise
            self._end()
            super()._start()

    def checkpoint(self, kind: str) -> Path:
        """2.1 GB."""
        return made(*self.shape)

    def _prepare(self) -> None:
        super()._prepare()
        models = self.data / "models"
        folder = models / "ipadapter"
        for variant, width in {"base": EMBED, "plus": 128, "full": 128}.items():
            tensors = adapter_tensors(variant, 768, SD1_WIDTHS, width, seed=7)
            write_adapter(folder / f"sd1-{variant}.safetensors", tensors)
        write_adapter(folder / "pickled.bin", adapter_tensors("base", 768, SD1_WIDTHS, EMBED, seed=7), "pickle")
        write_lora(models / "Lora" / "probe.safetensors", 320)
        # What the fork's own IP-Adapter takes, under the names that it expects; the file is a ViT-L.
        (models / "ControlNetPreprocessor").mkdir()
        (models / "ControlNetPreprocessor" / "CLIP-ViT-H-14.safetensors").symlink_to(made("vit-l", "real_encoder.py"))
        (models / "ControlNet").mkdir()
        theirs: dict[str, Any] = {"dim": self.inner, "inner": self.inner, "depth": 4, "seed": 11, "dtype": torch.half}
        for name, variant, width, tokens in (("", "base", 768, 4), ("-plus", "plus", 1024, 16)):
            tensors = adapter_tensors(variant, self.context, self.widths, width, tokens, **theirs)
            write_adapter(models / "ControlNet" / f"ip-adapter{name}_vit-l.safetensors", tensors)
        if couple().is_dir():
            shutil.copytree(
                couple(), self.data / "extensions" / "sd-forge-couple", ignore=shutil.ignore_patterns(".git")
            )

    def titles(self) -> list[str]:
        """Of the scripts, in lower case."""
        names: list[str] = self.get("/sdapi/v1/scripts").json["txt2img"]
        return names

    def own_adapter(self, image: str, weight: float = 1.0, model: str = "ip-adapter_vit-l") -> dict[str, Any]:
        """The fork's own IP-Adapter, a unit of its ControlNet, as alwayson script. image: base64."""
        listed = self.get("/controlnet/model_list").json["model_list"]
        fields = {
            "enabled": True, "module": "CLIP-ViT-H (IPAdapter)", "weight": weight, "image": image,
            "model": next(name for name in listed if name.partition(" ")[0] == model), "save_detected_map": False,
        }  # fmt: skip
        return {"ControlNet": {"args": [fields]}}


class ForkXL(Fork):
    """With a checkpoint of SDXL's real shape (4.5 GB)."""

    shape = ("sdxl", "real_checkpoint_xl.py")
    context, widths, inner = 2048, SDXL_WIDTHS, 1280


class ForkGGUF(Fork):
    """Forge with SD1.5's UNet quantised as GGUF and the rest of the checkpoint beside it. Forge takes the shapes
    of tensors from the file as numpy.uint64, and before numpy 2 halves of those are floats, which make no layer;
    numpy 1.25 and 1.26 have the rules of numpy 2 behind a switch."""

    variables: ClassVar[dict[str, str]] = {"NPY_PROMOTION_STATE": "weak"}

    def checkpoint(self, kind: str) -> Path:
        """1 GB; ``rest`` is another file."""
        source, script = super().checkpoint(kind), Path(__file__).with_name("real_gguf.py")
        path = cache() / f"sd15-{hash_of(script.read_bytes())}.gguf"
        if not path.is_file():
            part, rest = path.with_name(f"part-{os.getpid()}-{path.name}"), path.with_suffix(".safetensors")
            command = [python(self.host), script, source, part, rest]
            subprocess.run(command, check=True, capture_output=True, cwd=checkout(self.host))
            part.replace(path)
        return path

    def _prepare(self) -> None:
        super()._prepare()
        file, models = self.checkpoint("sd1"), self.data / "models"
        (models / "Stable-diffusion" / "sd1.safetensors").unlink()
        (models / "Stable-diffusion" / "sd1.gguf").symlink_to(file)
        (models / "VAE").mkdir()
        (models / "VAE" / "rest.safetensors").symlink_to(file.with_suffix(".safetensors"))


def largest(a: Reply, b: Reply) -> int:
    """The largest difference, of 255, between the pictures of two answers."""
    assert (a.status, b.status) == (200, 200), (a.body[:1000], b.body[:1000])
    pairs = zip(a.json["images"], b.json["images"], strict=True)
    return int(max(torch.max((decode(x) - decode(y)).abs()) for x, y in pairs))


def full_title(fork: Fork, scripts: dict[str, Any]) -> dict[str, Any]:
    """Scripts by the titles that this host gives them. Skips the test if it has none of that name."""
    found = {}
    for title, content in scripts.items():
        names = [name for name in fork.titles() if name.startswith(title.lower())]
        if not names:
            pytest.skip(f"{fork.host} has no {title}")
        found[names[0]] = content
    return found
