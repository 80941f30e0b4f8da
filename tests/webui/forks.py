"""Forge and reForge in a process of their own, as harness.WebUI is the WebUI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.synthetic import SD1_WIDTHS, adapter_tensors, write_adapter

from .harness import WebUI, cache, hash_of
from .networks import EMBED

# Named for what they do; the hosts have no --no-half, and find their model's config in its shapes.
FLAGS = [
    "--skip-prepare-environment", "--skip-torch-cuda-test", "--always-cpu", "--all-in-fp32", "--api",
    "--do-not-download-clip", "--no-download-sd-model", "--no-hashing", "--disable-console-progressbars",
]  # fmt: skip
FOLDERS = {"forge": "stable-diffusion-webui-forge", "reforge": "stable-diffusion-webui-reforge"}


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


def real_checkpoint() -> Path:
    """A random checkpoint of SD1.5's real shape (2.1 GB), made when it is not there: forks know models by their
    shapes."""
    source = Path(__file__).with_name("real_checkpoint.py")
    path = cache() / f"sd15-{hash_of(source.read_bytes())}.safetensors"
    if not path.is_file():
        part = path.with_name(f"part-{os.getpid()}-{path.name}")
        subprocess.run([sys.executable, str(source), str(part)], check=True, capture_output=True)
        part.replace(path)
    return path


class Fork(WebUI):
    """A running fork; a context manager."""

    loaded = ""  # a model is loaded by the first job

    def __init__(self, host: str, extra: tuple[str, ...] = ("--nowebui",), **more: Any) -> None:
        super().__init__(("sd1",), extra, **more)
        self.host = host
        self.defaults = {"steps": 2}  # the model is of SD1.5's real width
        # gradio 4 serves a page's scripts from folders that are named.
        self.flags = [*FLAGS, "--gradio-allowed-path", str(checkout(host))]

    @property
    def program(self) -> tuple[Path, Path]:
        """The checkout and its Python."""
        return checkout(self.host), python(self.host)

    def checkpoint(self, kind: str) -> Path:
        """Of SD1.5's shape."""
        return real_checkpoint()

    def _prepare(self) -> None:
        super()._prepare()
        folder = self.data / "models" / "ipadapter"
        for variant, width in {"base": EMBED, "plus": 128, "full": 128}.items():
            tensors = adapter_tensors(variant, 768, SD1_WIDTHS, width, seed=7)
            write_adapter(folder / f"sd1-{variant}.safetensors", tensors)
        write_adapter(folder / "pickled.bin", adapter_tensors("base", 768, SD1_WIDTHS, EMBED, seed=7), "pickle")
