"""``train``: trains an adapter. ``accelerate launch -m lib_ipadapter train ...`` for several GPUs."""

from __future__ import annotations

import argparse
import sys

from .config import add_arguments, from_arguments

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Trains, and prints where the adapter is; 130 when it was stopped before its last step."""
    config = from_arguments(args)
    from .trainer import Trainer

    trainer = Trainer(config)
    if trainer.main:
        print(trainer.summary(), file=sys.stderr)
    outcome = trainer.run()
    if not trainer.main:
        return 0
    if outcome.stopped:
        print(
            f"stopped after step {outcome.step} of {config.steps}; the same command goes on from it",
            file=sys.stderr,
        )
    print(outcome.adapter)
    return 130 if outcome.stopped else 0
