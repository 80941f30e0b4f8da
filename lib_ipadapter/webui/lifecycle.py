"""The callbacks of the Script, handed on to the Run of the job that they are about."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..errors import IPAdapterError
from ..unit import parse_units
from . import settings
from .following import Following, cut_of
from .infotext import KEY, TITLE
from .log import logger
from .maps import shown_in, when_closed
from .models import Models
from .request import is_of_panel, requested_units
from .script import Run
from .words import reworded
from .xyz import cell_values, over_units

RUN = "_ipadapter_run"  # the attribute of a job that has its Run


class Lifecycle:
    """What scripts/ip_adapter.py's Script delegates to. ``armed`` is the Run whose step is under way."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.armed: Run | None = None
        self.following = Following()

    def process(self, p: Any, args: Sequence[Any]) -> None:
        """Once per job, checkpoint loaded and options set. Never raises: errors surface from p.init."""
        self.disarm()
        self.forget(p)
        p.extra_generation_params.pop(KEY, None)
        run = Run(p, self.models)
        run.stopped = self.left
        try:
            self.models.host.load()
            run.place = self.following.place(p, self.run_of)
            given = requested_units(args, self.models.presets().over)
            units = parse_units(self._with_defaults(over_units(cell_values(p), given)))
            if not any(unit.enabled for unit in units):
                return
            run.start(shown_in(p, units, inside=run.place.around is not None))
            if run.session.observer is not None:
                # Others go through all pictures and take each for one of the job's, in its size (LLuL).
                self.models.host.run_last(p, "postprocess", TITLE)
            p.extra_generation_params[KEY] = run.infotext
        except IPAdapterError as error:
            logger.error("%s", error)
            run.refuse(reworded(error) if is_of_panel(args) else error)
        except Exception as error:
            logger.error("unexpected error\n%s", traceback.format_exc())
            run.refuse(error)
        setattr(p, RUN, run)

    @staticmethod
    def run_of(p: Any) -> Run | None:
        """p's Run. A shallow copy of p carries the Run of the p that it was copied from, which is not its Run."""
        run: Run | None = vars(p).get(RUN)
        return run if run is not None and run.p is p else None

    def _with_defaults(self, units: Sequence[Any]) -> list[Any]:
        """The default fit of the settings, for the panel and for requests."""
        fit = {"fit": settings.default_fit()}
        return [{**fit, **unit} if isinstance(unit, Mapping) else unit for unit in units]

    def process_batch(self, p: Any) -> None:
        """Before each batch of a job."""
        run = vars(p).get(RUN)
        if run is not None and run.p is p and run.session.prompts:
            run.before_sample()

    def finished(self, p: Any, picture: Image.Image) -> None:
        """A picture of a job is as it will be returned."""
        run = vars(p).get(RUN)
        if run is not None and run.p is p:
            run.sheets.picture(p.iteration, p.batch_index, picture)

    def postprocess(self, p: Any, processed: Any) -> None:
        """After a job."""
        run = vars(p).get(RUN)
        if run is not None and run.p is p:
            cut = cut_of(p)
            if not self.models.host.interrupted():
                for remark in run.never_acted():
                    logger.warning("%s", remark)
                    processed.comments += f"{remark}\n"
            when_closed(p, run.sheets, lambda: run.sheets.append_to(processed, cut, self.models.host))
        self.forget(p)

    def forget(self, p: Any) -> None:
        """Restores ``p`` and the model after a job, or before ``p`` is used again."""
        run = vars(p).pop(RUN, None)
        # A shallow copy of p carries the Run of the p that it was made of.
        if run is not None and run.p is p:
            run.restore()

    def left(self, run: Run) -> None:
        """A job's hooks are off: it is not kept, nor the model with which it sampled, also where no callback follows
        an error."""
        if self.armed is run:
            self.disarm()

    def disarm(self) -> None:
        """No hook acts any more."""
        if self.armed is not None:
            self.armed.session.rest()
            self.armed = None

    def on_cfg_denoiser(self, params: Any) -> None:
        """Arms the Run of the job that is sampling, and no other."""
        self.disarm()
        run = vars(params.denoiser.p).get(RUN) if params.denoiser.p is not None else None
        if run is None or run.p is not params.denoiser.p:
            return
        self.armed = run
        try:
            run.step(params)
        except Exception as error:
            run.break_next_call(error)

    def on_cfg_denoised(self, params: Any) -> None:
        """The step's announced calls are over. Other extensions may run the model again in this callback."""
        if self.armed is not None:
            self.armed.step_done()
