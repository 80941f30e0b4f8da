"""The Script's lifecycle: arguments to Units, Units to a Session, the Session around ``p.sample``.

The WebUI swallows what a Script's methods and callbacks raise, and the user would get an unaffected
picture. Only ``p.init`` and ``p.sample`` are called unguarded. So a refused request is raised from
``p.init``, and the Session lives inside a ``p.sample`` that takes it off again however it is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..attention.heatmaps.recorder import Recorder
from ..attention.region import WHOLE, Box, Region
from ..attention.session import ImagePrompt, Session
from ..errors import IPAdapterError, WrongBase
from ..prompts.image_prompt import in_turn
from ..prompts.resolve import ResolvedUnit
from ..unit import Unit
from . import poses, regions, remarks, turns
from .describe import say_unpublished
from .doubles import brings_lora, twice
from .following import PLACE_UNKNOWN, Place, boxes_of, latent_tiles
from .infotext import Hashes, to_infotext
from .inputs import with_inputs
from .log import logger
from .maps import Sheets
from .models import Models
from .passes import Pass, idle, only_hires, passes_of
from .pictures import hashes
from .replacement import Replacement
from .step import InnerModel, StepRows, begin

Entry = tuple[Unit, Hashes]  # of the infotext


class Run:
    """One processing job's Session, and the ``p.sample`` and ``p.init`` that it stands in for."""

    def __init__(self, p: Any, models: Models) -> None:
        self.p = p
        self.models = models
        self.host = models.host
        self.place = Place()
        self.boxes: tuple[Box, ...] = (WHOLE,)  # what part of the picture the last step's latents showed
        self.session = Session(())
        self.stopped: Callable[[Run], None] = lambda run: None  # told when its hooks are off
        self.sheets = Sheets(self.session, ())
        self.infotext: str | None = None
        self._alive = True
        self._refused: nn.Module | None = None
        self._rows = self.host.rows()
        self._inner = InnerModel(self._rows)
        self._break: Any = None  # the hook that raises an error of ours in the job
        self._units: list[tuple[int, Unit, ImagePrompt]] = []  # those that act, with their places
        self._idle: set[int] = set()  # places of units that act in no pass, which was said
        self._sampled = False
        self._ends = False  # the step is the last of its pass
        self._elsewhere: list[Unit] = []  # those that act in details only, of a job that is none
        self._details: Counter[tuple[int, int]] = Counter()  # jobs inside this one, by batch and picture
        self._compared = False  # the units' LoRAs with those of the prompt
        self._in_hires: list[tuple[Region, Unit]] = []  # around faces of the first pass's picture
        self._redrawn: list[tuple[Region, Unit]] = []  # regions that inpainting's mask says, once it is known

    def start(self, units: Sequence[Unit]) -> None:
        """Prepares the units. Raises IPAdapterError, naming the unit."""
        acting = any(unit.enabled and self.place.lets(unit) for unit in units)
        passes = passes_of(self.p, self.host) if acting else ()
        entries = []
        self.models.expect(len(units))
        with self.models.encoding():
            for index, unit in enumerate(units):
                try:
                    prompt, entry = self._prepare(unit, passes) if unit.enabled else (None, [(unit, Hashes())])
                except IPAdapterError as error:
                    raise error.in_unit(index) from error.__cause__
                self._units += [(index, unit, prompt)] if prompt else []
                if prompt and (remark := idle(self.p, unit)):
                    self._idle.add(index)
                    self.host.comment(self.p, f"IP-Adapter unit {index + 1}: {remark}")
                entries.append(entry)
        self.infotext = self._texts(entries)
        prompts = [prompt for _, _, prompt in self._units]
        self.session = Session(prompts, latent_tiles, self._rows, Recorder.of(prompts), self.models.projected)
        self.sheets = Sheets(self.session, self._units)
        if not self.place.known and any(p.beside or (p.region and p.region.moves) for p in prompts):
            self.host.comment(self.p, PLACE_UNKNOWN)

    def _texts(self, entries: Sequence[Sequence[Entry]]) -> str:
        """The infotext's value. entries: of each unit, what it stands for in each picture in turn; where any has
        several, the value gives each picture's."""

        def of(picture: int) -> str:
            shown = [in_turn[picture % len(in_turn)] for in_turn in entries]
            return to_infotext([unit for unit, _ in shown], [names for _, names in shown])

        return turns.TextByPicture(of) if any(len(in_turn) > 1 for in_turn in entries) else of(0)

    def _prepare(self, unit: Unit, passes: Sequence[Pass]) -> tuple[ImagePrompt | None, list[Entry]]:
        """The unit's image prompt, None where its switches are off, and as what it stands in the infotext of each
        picture in turn. What can be refused without encoding is first."""
        if not self.place.lets(unit):
            self._elsewhere += [unit] if unit.in_detailer == "only" and not self.place.detailer else []
            return None, [(unit, hashes(self._resolve(unit), unit))]
        if unit.distribute == "one per detail" and self.place.detailer:
            own = turns.of_detail(with_inputs(unit, self._redraws()), self.place.detail, self.models.shelf())
            if own is None:
                logger.warning("%s", text := f"detail {(self.place.detail or 0) + 1} has no reference left")
                self.host.comment(self.place.around, f"IP-Adapter: {text}, so it was drawn without one")
                return None, [(unit, hashes(self._resolve(unit), unit))]
            unit = own
        adapter = self.models.adapter(unit.model).as_kind(unit.kind)
        for one in passes:
            one.check(unit, adapter.spec)
        if unit.distribute != "together":
            unit = with_inputs(unit, self._redraws())
        pipeline, each = self.models.pipeline(), turns.taken(self.p, unit, self.models.shelf())
        resolved = [self._resolve(one) for one in each]
        pipeline.check(resolved, adapter.spec)
        if any(one.needs_encoder for one in resolved):
            say_unpublished(self.p, self.host, adapter.spec, self.models.faces)
        pose = poses.control_of(self.p, unit, resolved, adapter.spec, self.place, self.models, passes)
        mask = resolved[0].mask
        region = self._region(unit, mask.image() if mask else None)
        prompts = [pipeline.prompt(one, adapter, region) for one in resolved]
        prompt = replace(in_turn(prompts), beside=pose) if pose else in_turn(prompts)
        return prompt, [(one, hashes(its, one)) for one, its in zip(each, resolved, strict=True)]

    def _redraws(self) -> Any:
        """The job whose picture is img2img's: of a detail, the one around it."""
        return self.p if self.place.around is None else self.place.around

    def _resolve(self, unit: Unit) -> ResolvedUnit:
        return self.models.resolve(with_inputs(unit, self._redraws()))

    def _region(self, unit: Unit, mask: Image.Image | None) -> Region | None:
        """Where the unit acts. Raises UnitError for an empty region."""
        if unit.region == "face" and regions.awaits_hires(self.p, unit):
            self._in_hires.append((Region(torch.ones(1, 1)), unit))
            return self._in_hires[-1][0]
        if unit.region == "face":
            return regions.of_face(self.p, unit, self.place, self.models.faces)
        if unit.region == "inpaint":
            region = regions.to_be_redrawn(self.p, unit)
            self._redrawn.append((region, unit))
            return region
        return None if mask is None else regions.of_mask(unit, mask, self.place.size)

    def cut(self) -> Box | None:
        """The part that is inpainted alone and put back into the picture."""
        p = self.p
        cut, image_mask = getattr(p, "paste_to", None), getattr(p, "image_mask", None)
        if not getattr(p, "inpaint_full_res", False) or not cut or image_mask is None:
            return None
        (x, y, w, h), (width, height) = cut, image_mask.size
        return x / width, y / height, (x + w) / width, (y + h) / height

    def before_sample(self) -> None:
        """``p.sample`` is called next, and ours in its place: for this one call, because what copies ``p``
        afterwards (a detailer, a script) must not get a ``sample`` that is bound to this job."""
        if not isinstance(vars(self.p).get("sample"), Replacement):
            self._replace("sample", self._sample)

    def refuse(self, error: BaseException) -> None:
        """Raises ``error`` where the user sees it: from ``p.init``; of a job inside another one, whose script may
        swallow it, below the picture too."""
        if self.place.around is not None:
            self.host.comment(self.place.around, f"IP-Adapter stopped a job inside this one: {error}")

        def init(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if self._alive:
                self.host.surface(error)
                raise error
            return original(*args, **kwargs)

        self._replace("init", init)

    def _replace(self, name: str, function: Callable[..., Any]) -> None:
        original = getattr(self.p, name)
        setattr(self.p, name, Replacement(function, original))

    def restore(self) -> None:
        """Takes everything off ``p`` and the model. A replacement that another extension still holds passes through."""
        self._alive = False
        self.stop()
        self.restore_methods()

    def restore_methods(self) -> None:
        """Takes the replaced methods off ``p``."""
        for name in ("sample", "init", "sample_hr_pass"):
            method = vars(self.p).get(name)
            if isinstance(method, Replacement):
                method.restore(self.p, name)

    def _sample(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._alive:
            return original(*args, **kwargs)
        self._inner.error = self._refused = None
        try:
            for region, unit in self._redrawn:
                region.show(regions.redrawn(self.p, unit))
            if hasattr(self.p, "sample_hr_pass"):
                self._replace("sample_hr_pass", self._hires_pass)
            if not only_hires(self.p):  # a hires pass alone loads its model first
                self._attach(self._unet(), hires=False)
                self._say_doubles()
            self.sheets.begin()
            samples = original(*args, **kwargs)
            if error := self._inner.error or self.session.error:
                raise error
            self.sheets.end(self.p.iteration)
            self._sampled = True
            return samples
        except Exception as error:
            if isinstance(error, IPAdapterError):
                self._name_unit(error)
            self.host.surface(error)
            raise
        finally:
            self.restore_methods()
            self.stop()

    def _say_doubles(self) -> None:
        """A comment where the prompt loads a LoRA that a unit's file brings along: it was loaded a moment ago."""
        units = [] if self._compared else [one for one in self._units if brings_lora(one[2])]
        self._compared = True
        for remark in twice(units, self._unet(), self.host.loras) if units else ():
            logger.warning("%s", remark)
            self.host.comment(self.p, remark)

    def _hires_pass(self, original: Callable[..., Any], samples: Any, decoded: Any, *args: Any, **kwargs: Any) -> Any:
        """The hires pass begins, with the first pass's latents or, if an upscaler of pictures follows, its picture. Its
        model is loaded, and the host has not filled the device with it yet."""
        if self._in_hires:
            pixels = self.host.decode(self.p, samples) if decoded is None else decoded
            values = ((pixels[0].detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
            picture = Image.fromarray(values.permute(1, 2, 0).numpy())
        for region, unit in self._in_hires:
            region.show(regions.face_in_hires(self.p, picture, unit, self.models.faces))
        self._follow(hires=True)
        self.session.resume()
        return original(samples, decoded, *args, **kwargs)

    def next_detail(self) -> int:
        """A job inside this one begins: which of the current picture it is."""
        picture = int(getattr(self.p, "iteration", 0)), int(getattr(self.p, "batch_index", 0))
        self._details[picture] += 1
        return self._details[picture] - 1

    def never_acted(self) -> list[str]:
        """Remarks on units of which no step computed a term, after the job: pictures never lack one in silence."""
        found = [remarks.NO_DETAIL] if self._elsewhere and not self._details else []
        return found + (remarks.never_acted(self._units, self._idle, self.session.acted) if self._sampled else [])

    def stop(self) -> None:
        """The hooks are off, and nothing is watched."""
        self.session.detach()
        self._inner.leave()
        if self._break is not None:
            self._break.remove()
            self._break = None
        self.stopped(self)

    def step(self, params: Any) -> None:
        """A denoiser step begins: ``params`` are CFGDenoiserParams."""
        hires = bool(getattr(self.p, "is_hr_pass", False))
        self._follow(hires)
        self._ends = params.denoiser.step + 1 >= (params.denoiser.total_steps or 1)
        self._inner.watch(params.denoiser)
        self.boxes = boxes_of(self.p, self.place.boxes)
        turning = any(len(prompt.tokens) > 2 for prompt in self.session.prompts)
        plan = self.host.plan(self.p, params)
        step = StepRows.of(self.p, plan, self.boxes, turning, self.session.observer is not None)
        begin(self.session, self._rows, step, params, hires)

    def step_done(self) -> None:
        """The step's announced calls are over; behind the last step, the host may want the memory."""
        self.session.end_step()
        if self._ends:
            self.session.pause()

    def _follow(self, hires: bool) -> None:
        """The model may have changed: hires fix with another checkpoint, the refiner."""
        unet = self._unet()
        if unet is self._refused or not self.session.prompts:
            return
        try:
            self._attach(unet, hires)
        except WrongBase as error:
            self.session.detach()
            if not self.host.in_refiner(self.p):
                raise
            # The refiner only finishes what the prompted model began; no adapter exists for its shape.
            self._refused = unet
            logger.warning("did not act in the refiner: %s", error)
            self.host.comment(self.p, f"IP-Adapter did not act in the refiner: {error}")

    def _unet(self) -> nn.Module:
        """The UNet that samples now. Raises UnsupportedModel."""
        self.host.check(self.p)
        return self.host.unet()

    def _attach(self, unet: nn.Module, hires: bool) -> None:
        """The hooks are on ``unet`` for the units that act in this pass. Raises WrongBase, naming the unit."""
        try:
            self.session.attach(unet, hires)
        except WrongBase as error:
            self._name_unit(error)
            raise

    def _name_unit(self, error: IPAdapterError) -> None:
        """The error names the unit, where it names a file of the unit's."""
        model, file = error.detail.get("model"), error.detail.get("file")
        for index, unit, prompt in self._units:
            if unit.model == model or file in prompt.files:
                error.in_unit(index)
                return

    def break_next_call(self, error: BaseException) -> None:
        """Raises ``error`` at the next call of the UNet: an exception in a callback would be swallowed, and the job
        would go on without the image prompt."""
        self.session.detach()
        self._inner.error = error

        def fail(module: nn.Module, args: Any) -> None:
            raise error

        if self._break is None:
            self._break = self.host.unet().register_forward_pre_hook(fail)
