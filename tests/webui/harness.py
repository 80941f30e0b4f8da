"""The real WebUI in a process of its own, with this extension, on the CPU."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from tests.webui.networks import write_adapters, write_encoder, write_hypernetwork, write_lora

REPO = Path(__file__).resolve().parents[2]
RUNTIME = (
    "localizations", "scripts", "lib_ipadapter", "javascript", "style.css", "install.py", "preload.py", "metadata.ini",
)  # fmt: skip
# Named for what they do; --use-cpu all and no half precision because there is no GPU.
FLAGS = [
    "--skip-prepare-environment",
    "--skip-torch-cuda-test",
    "--no-half",
    "--no-half-vae",
    "--api",
    "--use-cpu",
    "all",
    "--do-not-download-clip",
    "--no-download-sd-model",
    "--no-hashing",
    "--disable-console-progressbars",
]

SDP = "sdp-no-mem - scaled dot product without memory efficient attention"  # faster than what the WebUI takes on a CPU
NO_API = "--no-api"  # no flag of the WebUI: leaves --api out


def checkout() -> Path:
    """Where the WebUI is expected."""
    return Path(os.environ.get("WEBUI_DIR", "~/stable-diffusion-webui")).expanduser()


def python() -> Path:
    """The WebUI's own Python."""
    given = os.environ.get("WEBUI_PYTHON")
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    return Path(given) if given else checkout() / "venv" / inside


def controlnet() -> Path:
    """A checkout of sd-webui-controlnet."""
    return Path(os.environ.get("CONTROLNET_DIR", "~/sd-webui-controlnet")).expanduser()


def absent() -> str:
    """Why the WebUI cannot be started here, or ''."""
    if not (checkout() / "launch.py").is_file():
        return f"no WebUI at {checkout()} (set WEBUI_DIR)"
    if not python().is_file():
        return f"no Python at {python()} (set WEBUI_PYTHON)"
    return ""


def cache() -> Path:
    """Where checkpoints are kept between runs; they take seconds to make and never change."""
    folder = Path(tempfile.gettempdir()) / "ipadapter-test-checkpoints"
    folder.mkdir(exist_ok=True)
    return folder


def checkpoint(kind: str) -> Path:
    """A small checkpoint of this kind (checkpoints.py), made when it is not there."""
    source = Path(__file__).with_name("checkpoints.py")
    version = f"{hash_of(source.read_bytes())}"
    path = cache() / f"{kind}-{version}.safetensors"
    if not path.is_file():
        part = path.with_name(f"part-{os.getpid()}-{path.name}")
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command = [python(), source, kind, part]
        run = subprocess.run(command, cwd=checkout(), env=env, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"{kind} could not be made:\n{run.stdout}\n{run.stderr}")
        if part.with_suffix(".yaml").is_file():
            part.with_suffix(".yaml").replace(path.with_suffix(".yaml"))
        part.replace(path)
    return path


def hash_of(data: bytes) -> str:
    """A short name for bytes."""
    return hashlib.sha256(data).hexdigest()[:8]


def picture(seed: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A picture of coloured blocks."""
    generator = torch.Generator().manual_seed(seed)
    blocks = (torch.rand(4, 4, 3, generator=generator) * 255).byte().numpy()
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def b64(image: Image.Image) -> str:
    """PNG as base64."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class Reply:
    """An answer of the server."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class WebUI:
    """A running WebUI; a context manager. ``extra`` are further command line flags."""

    loaded = "Model loaded in"  # what the log says when a model is there
    variables: ClassVar[dict[str, str]] = {}  # of its environment

    def __init__(
        self,
        checkpoints: tuple[str, ...] = ("sd1",),
        extra: tuple[str, ...] = ("--nowebui",),
        with_controlnet: bool = False,
        with_extension: bool = True,
        config: dict[str, Any] | None = None,
        path: Path | None = None,
    ) -> None:
        self.checkpoints = checkpoints
        self.extra = tuple(flag for flag in extra if flag != NO_API)
        self.flags = [flag for flag in FLAGS if flag != "--api" or NO_API not in extra]
        self.with_controlnet = with_controlnet
        self.with_extension = with_extension
        self.config = config or {}
        self.defaults: dict[str, Any] = {}  # of each job, over the harness's own
        self.headers: dict[str, str] = {}  # of each request
        self.set_options: dict[str, Any] = {}
        self.kept: dict[str, list[str]] = {}
        self.path = path  # of packages in front of the WebUI's own
        self.data = Path(tempfile.mkdtemp(prefix="ipadapter-webui-"))
        self.log_path = self.data / "log.txt"
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.startup_seconds = 0.0

    def __enter__(self) -> WebUI:
        try:
            self._prepare()
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def first(self) -> Path:
        """The checkpoint that it starts with."""
        return self.data / "models" / "Stable-diffusion" / f"{self.checkpoints[0]}.safetensors"

    @property
    def program(self) -> tuple[Path, Path]:
        """The checkout and its Python."""
        return checkout(), python()

    def checkpoint(self, kind: str) -> Path:
        """The file of one of ``checkpoints``, its yaml beside it."""
        return checkpoint(kind)

    def _prepare(self) -> None:
        models = self.data / "models"
        (models / "Stable-diffusion").mkdir(parents=True)
        for kind in self.checkpoints:
            source = self.checkpoint(kind)
            for suffix in (".safetensors", ".yaml"):
                if source.with_suffix(suffix).is_file():
                    _link(source.with_suffix(suffix), models / "Stable-diffusion" / f"{kind}{suffix}")
        write_adapters(models / "ipadapter")
        write_encoder(models / "clip_vision")
        write_lora(models / "Lora" / "probe.safetensors")
        write_hypernetwork(models / "hypernetworks" / "probe.pt")
        extensions = self.data / "extensions"
        extensions.mkdir()
        if self.with_extension:
            own = extensions / "sd-webui-ip-adapter"
            own.mkdir()
            for name in RUNTIME:
                if (REPO / name).exists():
                    _link(REPO / name, own / name)
        _link(Path(__file__).with_name("probe"), extensions / "probe")
        if self.with_controlnet:
            shutil.copytree(controlnet(), extensions / "sd-webui-controlnet", ignore=shutil.ignore_patterns(".git"))
            (models / "ControlNet").mkdir()
            _link(checkpoint("controlnet"), models / "ControlNet" / "random_control.safetensors")
            # Its own IP-Adapter units find the same kind of file there.
            _link(models / "ipadapter" / "sd1-base.safetensors", models / "ControlNet" / "ip-adapter_cn.safetensors")
        settings = {
            "samples_save": False, "grid_save": False, "save_images_add_number": True, "show_progressbar": False,
            "live_previews_enable": False, "sd_checkpoint_cache": 0, "sd_checkpoints_limit": 1,
            "cross_attention_optimization": SDP, "sd_model_checkpoint": self.first.name, **self.config,
        }  # fmt: skip
        (self.data / "config.json").write_text(json.dumps(settings))

    def _start(self) -> None:
        folder, program = self.program
        command = [
            str(program), "launch.py", *self.flags, "--ckpt", str(self.first), "--data-dir", str(self.data),
            "--port", str(self.port), *self.extra,
        ]  # fmt: skip
        env = {
            **os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
            "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": str(self.path or ""),
            "PYTHONDONTWRITEBYTECODE": "",  # as people's WebUI keeps it, whatever the shell says
            **self.variables,
        }  # fmt: skip
        started = time.monotonic()
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        self._wait(started + 300)
        self.startup_seconds = time.monotonic() - started

    def _wait(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            if self.process and self.process.poll() is not None:
                raise RuntimeError(f"the WebUI stopped with {self.process.returncode}:\n{self.log[-6000:]}")
            if "Exception in thread" in self.log and "(api_only_worker)" in self.log:
                raise RuntimeError(f"the WebUI's API did not start:\n{self.log[-6000:]}")
            with contextlib.suppress(OSError):
                # Answers once a model is loaded.
                if self.get("/sdapi/v1/memory").status in (200, 401) and self.loaded in self.log:
                    return
            time.sleep(0.3)
        raise RuntimeError(f"the WebUI did not start:\n{self.log[-6000:]}")

    @property
    def log(self) -> str:
        """What the WebUI printed."""
        return self.log_path.read_text(errors="replace") if self.log_path.is_file() else ""

    def stop(self) -> None:
        """Ends the process and removes its folder."""
        self._end()
        shutil.rmtree(self.data, ignore_errors=True)

    def _end(self) -> None:
        if self.process and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM) if os.name != "nt" else self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    # requests

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json", **self.headers, **(headers or {})},
            method=method,
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=600) as response:
                return Reply(response.status, response.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.read())

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        return self.request("POST", path, body, headers)

    def options(self, **values: Any) -> None:
        """Sets and saves options."""
        reply = self.post("/sdapi/v1/options", values)
        assert reply.status == 200, reply.body
        self.set_options |= values

    @contextlib.contextmanager
    def set(self, **values: Any) -> Iterator[None]:
        """Options set inside, and as they were again afterwards."""
        before, known = self.get("/sdapi/v1/options").json, dict(self.set_options)
        self.options(**values)
        try:
            yield
        finally:
            # An option that was never saved is not listed; all that the tests set are then off.
            self.options(**{key: before.get(key, type(values[key])()) for key in values})
            for key in values:
                self.set_options.pop(key)
            self.set_options |= {key: known[key] for key in values if key in known}

    def draw(self, *units: Any, mode: str = "txt2img", scripts: dict[str, Any] | None = None, **payload: Any) -> Reply:
        """One generation with these units; none of ours when no unit is given."""
        always = dict(scripts or {})
        if units:
            always["IP-Adapter"] = {"args": list(units)}
        body = {
            "prompt": "a red house on a hill", "negative_prompt": "blurry", "steps": 2, "width": 64, "height": 64,
            "seed": 1, "sampler_name": "Euler", "cfg_scale": 5, "alwayson_scripts": always, **self.defaults, **payload,
        }  # fmt: skip
        return self.post(f"/sdapi/v1/{mode}", body)

    def images(self, *units: Any, **payload: Any) -> list[str]:
        """The pictures' base64, which are equal when the pictures are."""
        reply = self.draw(*units, **payload)
        assert reply.status == 200, f"{reply.body[:2000]!r}\n{self.log[-3000:]}"
        return [pixels(image) for image in reply.json["images"]]

    def known(self, *units: Any, **payload: Any) -> list[str]:
        """The pictures as this job first drew them under these options: what a test expects of one that it draws.
        Not for what must be drawn now: what is left after a job of ours, or depends on files or on the job before."""
        key = json.dumps([self.set_options, self.defaults, units, payload], sort_keys=True)
        if key not in self.kept:
            self.kept[key] = self.images(*units, **payload)
        return list(self.kept[key])


def pixels(data: str) -> str:
    """A hash of the picture's pixels: the PNG holds the parameters too, which may differ."""
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    return hash_of(image.tobytes() + repr(image.size).encode())


def decode(data: str) -> torch.Tensor:
    """Base64 to pixels [H, W, 3] in 0..255."""
    import numpy as np

    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))).float()


def _link(source: Path, target: Path) -> None:
    """A link where the system allows it, else a copy."""
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)


def refused(webui: WebUI, *units: dict[str, Any], **payload: object) -> str:
    """The message of a generation that is refused; afterwards the base is drawn as before."""
    base = webui.known()
    reply = webui.draw(*units, **payload)
    assert reply.status == 422, reply.body[:500]
    assert webui.images() == base
    return str(reply.json["detail"]["message"])


@contextlib.contextmanager
def without(path: Path) -> Iterator[None]:
    """A file that is away inside."""
    away = path.with_name(f"{path.name}.away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


def main() -> None:
    """Starts a WebUI for a person or another program to use: prints its address, ends at Ctrl-C."""
    with WebUI(("sd1", "sdxl"), extra=tuple(sys.argv[1:])) as webui:
        print(webui.url, webui.data, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
