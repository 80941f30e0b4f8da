"""The command line: ``python -m lib_ipadapter inspect | convert | embed | generate | faces | train | evaluate``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from .errors import IPAdapterError

# Name, module with add_arguments(parser) and run(args) -> exit code, help. A module is imported only for its own
# command.
COMMANDS = {
    "inspect": ("lib_ipadapter.adapters.inspect", "tell what adapter files are and what they need"),
    "convert": ("lib_ipadapter.adapters.convert", "write an adapter as safetensors"),
    "embed": ("lib_ipadapter.standalone.embed", "save the features of reference images, to use them again"),
    "generate": ("lib_ipadapter.standalone.generate", "sample pictures without a WebUI"),
    "faces": ("lib_ipadapter.faces.command", "find the faces in pictures, by face models that you have"),
    "train": ("lib_ipadapter.training.command", "train an adapter on captioned pictures"),
    "evaluate": ("lib_ipadapter.evaluation.command", "measure adapters: CLIP-I, CLIP-T, grid and curve"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. One of our errors is one line on stderr and exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m lib_ipadapter", description="Image prompts by IP-Adapter.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name in argv[:1]:
            importlib.import_module(module).add_arguments(command)
    args = parser.parse_args(argv)
    return ended(lambda: importlib.import_module(COMMANDS[args.command][0]).run(args))


def ended(run: Callable[[], int | None]) -> int:
    """The exit code of ``run``: 2 after one of our errors, printed as one line on stderr; 130 after Ctrl-C."""
    try:
        return run() or 0
    except IPAdapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
