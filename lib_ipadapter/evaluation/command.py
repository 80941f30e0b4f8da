"""``evaluate``: references, adapters and λ to a table, a grid and a curve, from the command line."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..encoders import weight_file
from ..errors import ConfigError, IPAdapterError
from ..faces import FaceAnalyser
from ..options import add_flags, from_flags
from ..standalone.generate import device_of, face_analyser
from .identity import Identity, people_of
from .items import Item, read_items
from .measures import load_measures
from .methods import BASE, BaseModel, Encoders, Method, Studio, TextBaseline, adapter_method
from .metric import Clip
from .options import EvaluateOptions
from .remote import WebUIMethod, read_payload
from .run import Further, evaluate

EPILOG = """\
measures:
  CLIP-I   cosine of the CLIP embeddings of picture and reference
  CLIP-T   cosine of the CLIP embeddings of picture and caption (with a --prompt template: and that text);
           results.json also has CLIPScore, 2.5 * max(cosine, 0) with "A photo depicts " before the text
  top-1    fraction of the pictures closer to their own reference than to all others; top-5: among the five closest
With --identity:
  identity     cosine of the ArcFace embeddings of the largest faces of picture and reference
  faces found  fraction of the pictures in which a face is found; the others have no identity
  identity top-1, identity rank  is its own person the closest of all, and at which place (--identity-people)
With --measure NAME=FILE:
  DINO, DINOv2, CSD  cosine of the embeddings of picture and reference: of the subject (DINO), of the style (CSD)
Means over references, with 95 % intervals (Student's t; of top-1 and top-5 Wilson's), and the differences between
methods, paired by reference. The row "reference" has the real pictures' own values.

Pictures are kept in OUT/pictures with the settings that made them: stop it at any time (Ctrl-C), the same
command goes on; other settings in the same OUT are refused.

examples:
  python -m lib_ipadapter evaluate --references photos --out run --clip ViT-L-14.safetensors --clip-arch ViT-L-14 \\
      --checkpoint sd15.safetensors --encoder clip_h.safetensors --adapter ip-adapter_sd15.safetensors \\
      --adapter plus=ip-adapter-plus_sd15.safetensors --weights 0,0.25,0.5,0.75,1 --prompt none
  COCO: --references val2017 --coco captions_val2017.json --limit 500 --count 4
  a method of a running WebUI beside them: --webui http://127.0.0.1:7860 --payload shuffle.json --name shuffle
  (shuffle.json: a txt2img body in which "{reference}" stands for the picture as base64, "{caption}" for the
  prompt, "{seed}" and "{weight}" for numbers)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add_flags(parser, EvaluateOptions)


def run(args: argparse.Namespace) -> int:
    """Prints the table and where the rest lies."""
    options = from_flags(EvaluateOptions, args)
    options = replace(options, weights=tuple(sorted(options.weights)))
    options.check()
    items = read_items(options.references, options.coco, options.limit)
    remote = remote_methods(options)
    device, _ = device_of(options)
    metric = Clip.load(options.clip, options.clip_arch, device)  # first: it makes its architecture known to open_clip
    faces = face_analyser(options)
    files = load_measures(options.measure, device)
    extra: dict[str, Any] = _identity(options, items, faces) if options.identity or options.identity_people else {}
    extra |= files
    further = Further(extra, {name: measure.settings() for name, measure in files.items()}, options.published,
                      options.negative if options.dreambench else None)  # fmt: skip
    methods = [*standalone_methods(options, faces), *remote]
    results = evaluate(items, methods, metric, options.out, options, further=further)
    print(results.markdown())
    print(f"pictures, results.json, results.md and figures: {options.out}")
    return 0


def _identity(options: EvaluateOptions, items: Sequence[Item], faces: FaceAnalyser) -> dict[str, Any]:
    """The measures of --identity. Raises ConfigError, FaceError, FileError."""
    if not options.identity:
        raise ConfigError("identity-people", str(options.identity_people), "with --identity, whose recogniser looks")
    others = read_items(options.identity_people) if options.identity_people else None
    return dict(Identity(faces, options.identity, people_of(items, others)).measures())


def standalone_methods(options: EvaluateOptions, faces: FaceAnalyser | None = None) -> list[Method]:
    """Those of --adapter and --text-baseline; the base model alone where λ = 0 is all that is asked."""
    if not options.checkpoint:
        if options.adapter or options.text_baseline:
            raise ConfigError("checkpoint", None, "a Stable Diffusion checkpoint, for --adapter and --text-baseline")
        return []
    device, dtype = device_of(options)
    sampling = {
        "steps": options.steps,
        "cfg": options.cfg,
        "negative": options.negative,
        "size": (options.width, options.height),
    }
    config = options.config or options.checkpoint.with_suffix(".yaml")
    base = BaseModel(Studio.load(options.checkpoint, config, device, dtype, options.prediction, **sampling))
    files = [_named(text) for text in options.adapter]
    folders = [weight_file(path) for path in options.encoder] or list(dict.fromkeys(path.parent for _, path in files))
    encoders = Encoders(folders, device, faces or face_analyser(options))
    methods: list[Method] = [adapter_method(name, path, base, encoders, options.fit) for name, path in files]
    if options.text_baseline:
        methods.append(TextBaseline(base.studio, options.text_baseline))
    return methods or [base]


def _named(text: str) -> tuple[str, Path]:
    """NAME=FILE, or a file under its own name."""
    name, sign, rest = text.partition("=")
    if sign and not os.path.isfile(text):
        return name, Path(rest)
    path = Path(text)
    return (f"{path.stem}-adapter" if path.stem in (BASE, "text") else path.stem), path


def remote_methods(options: EvaluateOptions) -> list[WebUIMethod]:
    """Those of --webui and of each --method-json. Raises ConfigError, FileError."""
    entries: list[Mapping[str, Any]] = []
    if options.webui or options.payload:
        if not (options.webui and options.payload):
            raise ConfigError("payload" if options.webui else "webui", None, "--webui and --payload together")
        entries.append(
            {
                "name": options.name or options.payload.stem,
                "url": options.webui,
                "payload": str(options.payload),
            }
        )
    entries += [_entry(text) for text in options.method_json]
    return _made(entries, options.timeout)


def _entry(text: str) -> Mapping[str, Any]:
    expected = 'a JSON object of the texts "name", "url" and "payload" (a file)'
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError("method-json", text, expected) from None
    if not isinstance(entry, dict) or set(entry) != {"name", "url", "payload"}:
        raise ConfigError("method-json", text, expected)
    if not all(isinstance(value, str) for value in entry.values()):
        raise ConfigError("method-json", text, expected)
    return entry


def _made(entries: Sequence[Mapping[str, Any]], timeout: float) -> list[WebUIMethod]:
    try:
        return [WebUIMethod(e["name"], e["url"], read_payload(Path(e["payload"])), timeout) for e in entries]
    except ValueError as error:
        if isinstance(error, IPAdapterError):
            raise
        raise ConfigError("webui", [e["url"] for e in entries], f"addresses ({error})") from None
