"""``train``: trains an adapter. ``accelerate launch -m lib_ipadapter train ...`` for several GPUs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import options
from .config import TrainConfig
from .yaml_file import read_yaml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG.yaml, and every field as a flag."""
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        metavar="CONFIG.yaml",
        help="YAML file of the fields; flags override it",
    )
    options.add_flags(parser, TrainConfig)


def from_arguments(args: argparse.Namespace) -> TrainConfig:
    """The file's fields, overridden by the flags. Raises ConfigError."""
    values = read_yaml(args.config) if args.config else {}
    return TrainConfig.parse({**values, **options.given_flags(TrainConfig, args)})


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
            f"stopped after step {outcome.step} of {config.steps}; start it again to go on from there",
            file=sys.stderr,
        )
    print(outcome.adapter)
    return 130 if outcome.stopped else 0
