"""What AUTOMATIC1111's WebUI and the forks of it have in common as hosts: folders, checkpoints, a job's result."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
from modules import paths, sd_models, shared

from ...faces.packs import own_folder
from ...files.library import Folder
from .. import settings
from .base import Coming, Shapes

_ENCODERS = ("clip_vision", "image_encoder", "ipadapter")
_SD1 = 768  # numbers of a token of SD1.x's text
_SAME = "Use same checkpoint"
_safetensors: Any = safetensors  # untyped


class WebUI:
    """The part of ``base.Host`` that all of them share."""

    # folders

    def home(self) -> Path:
        """models/ipadapter."""
        return _models() / "ipadapter"

    def adapter_folders(self) -> list[Folder]:
        """Ours, then those of the ControlNet extension, which hold other models too."""
        ours = [
            getattr(shared.cmd_opts, "ipadapter_dir", None),
            *settings.folders("ipadapter_model_folders"),
        ]
        controlnet = [
            _models() / "ControlNet",
            _extensions() / "sd-webui-controlnet" / "models",
            shared.opts.data.get("control_net_models_path"),
            *_given("controlnet_dir", "controlnet_dirs"),
        ]
        others = [Folder(Path(f), shared=True) for f in controlnet if f]
        return [Folder(self.home(), create=True), *(Folder(Path(f)) for f in ours if f), *others]

    def encoder_folders(self) -> list[Path]:
        """Ours, those of the settings, the ControlNet extension's downloads, and where PuLID's other ports have
        EVA-CLIP."""
        ours = [_models() / name for name in _ENCODERS]
        given = map(Path, settings.folders("ipadapter_encoder_folders"))
        return [*ours, *given, _annotator() / "clip_vision", _hub() / "models--QuanSun--EVA-CLIP"]

    def face_folders(self) -> list[Path]:
        """ReActor's and Forge's, those of the settings, the ControlNet extension's, and insightface's own."""
        given = map(Path, settings.folders("ipadapter_face_folders"))
        return [_models() / "insightface", *given, _annotator() / "insightface", own_folder()]

    def parsing_folders(self) -> list[Path]:
        """Those of face models, and where the WebUI's face restorers keep facexlib's files."""
        restorers = ((_models() / name, f"{name.lower()}_models_path") for name in ("GFPGAN", "Codeformer"))
        theirs = [Path(getattr(shared.cmd_opts, option, None) or folder) for folder, option in restorers]
        return [*self.face_folders(), _models() / "facexlib", *theirs]

    def control_folders(self) -> list[Path]:
        """The ControlNet extension's and the forks', then those of adapters."""
        folders = [folder for folder in self.adapter_folders() if folder.shared]
        return [folder.path for folder in (*folders, *(one for one in self.adapter_folders() if not one.shared))]

    def text_tower_folders(self) -> list[Path]:
        """Those of the encoders and of the checkpoints."""
        return [*self.encoder_folders(), _models() / "Stable-diffusion", *_given("ckpt_dir", "ckpt_dirs")]

    # the model

    def checkpoints(self) -> dict[str, Path]:
        """All that it lists, files of one name in several folders by their paths; the chosen one is first."""
        infos = list(sd_models.checkpoints_list.values())
        names = _apart([_names(info) for info in infos])
        listed = {name: Path(info.filename) for name, info in zip(names, infos, strict=True)}
        chosen = str(shared.opts.data.get("sd_model_checkpoint") or "").split(" [")[0]
        loaded = getattr(sd_models.model_data.sd_model, "sd_checkpoint_info", None)
        first = getattr(loaded, "filename", None) or next(
            (info.filename for info in infos if chosen in (info.name, info.filename, info.name_for_extra)), ""
        )
        return dict(sorted(listed.items(), key=lambda item: (item[1] != Path(first), item[0].lower())))

    def checkpoint_config(self, path: Path, context: int) -> str:
        """As it was loaded; for all of SD1.x the WebUI has one."""
        model = sd_models.model_data.sd_model
        used = getattr(model, "used_config", None)
        if used and getattr(getattr(model, "sd_checkpoint_info", None), "filename", None) == str(path):
            return str(used)
        default = getattr(shared, "sd_default_config", None) if context == _SD1 else None
        return str(default) if default and Path(default).is_file() else ""

    def unload(self) -> None:
        """Hosts that manage memory load what a job needs by themselves."""

    def load(self) -> None:
        """Likewise."""

    def training_variables(self) -> dict[str, str]:
        """The card that ``--device-id`` names."""
        given = getattr(shared.cmd_opts, "device_id", None)
        return {} if given is None or "CUDA_VISIBLE_DEVICES" in os.environ else {"CUDA_VISIBLE_DEVICES": str(given)}

    def checkpoint_name(self) -> str:
        """The file's name without its extension."""
        info = getattr(sd_models.model_data.sd_model, "sd_checkpoint_info", None)
        return str(getattr(info, "name_for_extra", "") or "")

    def coming(self) -> Coming | None:
        """A checkpoint is loaded when it is chosen."""
        return None

    def hires_differs(self, p: Any) -> bool:
        """By the name that the job gives; the WebUI looks the checkpoint up later, in ``p.init``."""
        return _hires_checkpoint(p) is not None

    def hires_shapes(self, p: Any) -> Shapes | None:
        """From the header of a safetensors file; pickles are not opened."""
        info = _hires_checkpoint(p)
        return None if info is None else header(Path(info.filename))

    def in_refiner(self, p: Any) -> bool:
        """By the checkpoint that is loaded."""
        info = getattr(p, "refiner_checkpoint_info", None)
        return info is not None and shared.sd_model.sd_checkpoint_info == info

    # the job's result

    def say(self, text: str) -> None:
        """The page's progress says what takes time, until it is told ""."""
        shared.state.textinfo = f"IP-Adapter: {text}" if text else None

    def surface(self, error: BaseException) -> None:
        """What a job raises is shown."""

    def comment(self, p: Any, text: str) -> None:
        """Below the pictures."""
        p.comment(text)

    def run_last(self, p: Any, method: str, title: str) -> None:
        """By the runner's list of callbacks, which it keeps."""
        ordered = getattr(p.scripts, "ordered_callbacks", None)
        if ordered is not None:
            ordered(method).sort(key=lambda entry: entry.callback.title() == title)

    def decode(self, p: Any, latents: Any) -> Any:
        """As the WebUI itself decodes what it shows."""
        from modules import devices, processing

        return processing.decode_latent_batch(p.sd_model, latents, target_device=devices.cpu, check_for_nans=True)

    def interrupted(self) -> bool:
        """By the WebUI's state."""
        return bool(shared.state.interrupted or shared.state.skipped or shared.state.stopping_generation)

    def pastes_inpainted(self) -> bool:
        """An option of the WebUI."""
        return bool(shared.opts.overlay_inpaint)

    def writes_infotext(self) -> bool:
        """An option of the WebUI."""
        return bool(shared.opts.enable_pnginfo)

    def serves_others(self) -> bool:
        """Whether it is reached from other computers: then what one person has uploaded is not told to another."""
        options = shared.cmd_opts
        name = getattr(options, "server_name", None) or os.environ.get("GRADIO_SERVER_NAME")  # which gradio reads
        opened = any(getattr(options, option, None) for option in ("share", "listen", "ngrok"))
        return opened or name not in (None, "", "localhost", "127.0.0.1", "::1")

    def font(self, size: int) -> Any:
        """The WebUI's."""
        from modules.images import get_font

        return get_font(size)


def _names(info: Any) -> tuple[str, str, str]:
    """A checkpoint's name, that with its folder, and its path: one more than the other."""
    return str(info.name_for_extra), os.path.splitext(str(info.name))[0], str(info.filename)


def _apart(names: Sequence[Sequence[str]]) -> list[str]:
    """Of each row the first name that no other row has at its place; the last where there is none."""
    counts = [Counter(column) for column in zip(*names, strict=True)]
    return [next((name for name, count in zip(row, counts, strict=True) if count[name] == 1), row[-1]) for row in names]


def _models() -> Path:
    return Path(paths.models_path)


def _extensions() -> Path:
    return Path(paths.extensions_dir)


def _given(*names: str) -> list[Path]:
    """The folders of these command line options, one or several each; hosts have the one or the other."""
    values = (getattr(shared.cmd_opts, name, None) or [] for name in names)
    return [Path(one) for value in values for one in (value if isinstance(value, list | tuple) else [value])]


def _hub() -> Path:
    """The hub's cache."""
    home = os.environ.get("HF_HOME") or Path(os.path.expanduser("~"), ".cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def _annotator() -> Path:
    downloads = shared.opts.data.get("control_net_modules_path") or getattr(
        shared.cmd_opts, "controlnet_annotator_models_path", None
    )
    return Path(downloads or _extensions() / "sd-webui-controlnet" / "annotator" / "downloads")


def _hires_checkpoint(p: Any) -> Any:
    """The CheckpointInfo of a hires pass with another checkpoint than the loaded one, else None."""
    name = getattr(p, "hr_checkpoint_name", None) if getattr(p, "enable_hr", False) else None
    if not name or name == _SAME:
        return None
    info = sd_models.get_closet_checkpoint_match(name)  # the WebUI's spelling
    return None if info is None or info == shared.sd_model.sd_checkpoint_info else info


def header(path: Path) -> Shapes | None:
    """Names and shapes of a safetensors file's tensors; None for another file, or one that cannot be read."""
    if path.suffix.lower() != ".safetensors":
        return None
    try:
        with _safetensors.safe_open(str(path), framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (OSError, _safetensors.SafetensorError):
        return None  # the WebUI will say what is wrong with it
