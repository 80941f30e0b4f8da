"""What the extension needs of the program that samples. A second host is a second class with these methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...attention.rows import RowSource
from ...files.library import Folder

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class StepPlan:
    """The rows of a denoiser step. kinds: COND or UNCOND of each; pictures: gives the index in the batch of each. Where
    it is not known: RowsError if it is asked for as needed, else []."""

    kinds: tuple[int, ...]
    pictures: Callable[[bool], list[int]]


@dataclass(frozen=True)
class Coming:
    """A checkpoint that is not loaded yet. name: for people; shapes: reads names and shapes of its tensors, None if the
    file does not tell without being loaded."""

    name: str
    path: Path
    shapes: Callable[[], Shapes | None]


class Host(Protocol):
    """``p`` is a processing job of the WebUI family."""

    def home(self) -> Path:
        """The folder of adapters; presets, embeds and reference folders lie below it."""

    def adapter_folders(self) -> list[Folder]:
        """Where adapter files are searched, the first match wins."""

    def encoder_folders(self) -> list[Path]:
        """Where image encoders are searched. Downloads go into the first."""

    def face_folders(self) -> list[Path]:
        """Where face models are searched: packs' folders, or their archives. The first is what a message names."""

    def parsing_folders(self) -> list[Path]:
        """Where the weights that parse faces are searched, likewise."""

    def control_folders(self) -> list[Path]:
        """Where ControlNets are searched. The first is where people are told to put one."""

    def text_tower_folders(self) -> list[Path]:
        """Where the configs of custom text towers may lie, beside the checkpoints that need them."""

    def unet(self) -> nn.Module:
        """The UNet of the loaded model."""

    def loaded_unet(self) -> nn.Module | None:
        """As ``unet``, without loading a model: None if none is loaded."""

    def coming(self) -> Coming | None:
        """The checkpoint that the next job loads in place of the loaded one; None if that stays."""

    def checkpoints(self) -> dict[str, Path]:
        """The files of checkpoints by their names for people, the one in use first."""

    def checkpoint_config(self, path: Path, context: int) -> str:
        """The yaml of a checkpoint that has none beside it and whose text is so wide; "" if it is not known."""

    def unload(self) -> None:
        """The model leaves the device, until ``load``."""

    def load(self) -> None:
        """A model that ``unload`` took off the device is there again, for the job that begins."""

    def training_variables(self) -> dict[str, str]:
        """Variables of the environment of a process that trains on the same device."""

    def serves_others(self) -> bool:
        """Whether it is reached from other computers."""

    def checkpoint_name(self) -> str:
        """The loaded checkpoint's name for people, "" if none is loaded."""

    def check(self, p: Any, sampling: bool = True) -> None:
        """Raises UnsupportedModel if the job does not sample with that UNet, or will not: before it is ``sampling`` the
        host may not have switched UNets yet, and only its options tell."""

    def rows(self) -> RowSource:
        """A source of the rows that UNet calls hold, for one job."""

    def plan(self, p: Any, params: Any) -> StepPlan:
        """The rows of a step; ``params`` are CFGDenoiserParams."""

    def hires_shapes(self, p: Any) -> Shapes | None:
        """Names and shapes of the tensors in the checkpoint of the hires pass; None if the pass uses the loaded
        model, or if the file does not tell without being loaded."""

    def hires_differs(self, p: Any) -> bool:
        """Whether the hires pass loads another checkpoint."""

    def in_refiner(self, p: Any) -> bool:
        """Whether the loaded model is the job's refiner."""

    def device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        """Of the image encoder."""

    def room(self) -> AbstractContextManager[bool]:
        """Makes room on the device for an encoder; yields whether memory is so short that the encoder has to leave
        the device afterwards."""

    def say(self, text: str) -> None:
        """What takes time before the first step, for who waits; "": nothing any more."""

    def leaves(self) -> str:
        """When what runs beside the UNet has to leave the device: after each "call", after the "pass"; "": it may
        stay."""

    def reserve(self, size: int) -> torch.device | None:
        """Makes room for so many bytes beside the UNet, before it samples. The device, if they are put there now."""

    def surface(self, error: BaseException) -> None:
        """An error of ours is raised next in the job: makes sure that the page shows it."""

    def comment(self, p: Any, text: str) -> None:
        """Shows a remark beside the job's pictures."""

    def interrupted(self) -> bool:
        """Whether the user has stopped the job, or skipped pictures of it."""

    def decode(self, p: Any, latents: Tensor) -> Sequence[Tensor]:
        """Pictures [3, H, W] in -1..1 of the job's latents."""

    def loras(self, module: str) -> Iterable[tuple[str, Tensor]]:
        """Name and ``up`` [out, rank] of each LoRA that is loaded for a module of the UNet, by its dotted name."""

    def run_last(self, p: Any, method: str, title: str) -> None:
        """Of the job's scripts, the one with this title gets its callback ``method`` after all others."""

    def pastes_inpainted(self) -> bool:
        """Whether an inpainted part is pasted back into its picture."""

    def writes_infotext(self) -> bool:
        """Whether saved pictures carry their infotext."""

    def font(self, size: int) -> Any:
        """A PIL font for captions."""
