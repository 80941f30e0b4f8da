"""``evaluate``: references, adapters and λ to a table, a grid and a curve, from the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, IPAdapterError
from ..standalone.generate import DEFAULT_SIDE, device_of
from ..unit import FITS
from .items import read_items
from .methods import BASE, BaseModel, Encoders, Method, Studio, TextBaseline, adapter_method
from .metric import Clip
from .remote import TIMEOUT, WebUIMethod, read_payload
from .run import Options, evaluate

EPILOG = """\
measures:
  CLIP-I   cosine of the CLIP embeddings of picture and reference
  CLIP-T   cosine of the CLIP embeddings of picture and caption (with a --prompt template: and that text);
           results.json also has CLIPScore, 2.5 * max(cosine, 0) with "A photo depicts " before the text
  top-1    fraction of the pictures closer to their own reference than to all others; top-5: among the five closest
Means over references, with 95 % intervals (Student's t; of top-1 and top-5 Wilson's), and the differences between methods,
paired by reference. The row "reference" has the real pictures' own values.

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
    _add_data(parser.add_argument_group("references and measures"))
    _add_standalone(parser.add_argument_group("adapters, drawn here with a checkpoint"))
    _add_remote(parser.add_argument_group("methods of a running WebUI"))


def _add_data(group: Any) -> None:
    add = group.add_argument
    add("--references", type=Path, required=True, metavar="DIR",
        help="pictures with captions: .txt beside each, or metadata.jsonl (file_name, text)")  # fmt: skip
    add(
        "--coco",
        type=Path,
        metavar="JSON",
        help="captions of COCO's layout; the first of each picture is taken",
    )
    add("--limit", type=int, metavar="K", help="only the first K references, by name")
    add("--out", type=Path, required=True, metavar="OUT", help="folder of pictures, results.json, results.md, "
        "scores.jsonl, grid.png, curve.png")  # fmt: skip
    add("--clip", type=Path, required=True, metavar="FILE",
        help="the CLIP that measures: open_clip weights of both towers, its config beside it (same name, .json)")  # fmt: skip
    add("--clip-arch", metavar="NAME", help="instead of the config: open_clip's name, as ViT-L-14 (of OpenAI's "
        "weights ViT-L-14-quickgelu)")  # fmt: skip
    add(
        "--weights",
        default="1",
        metavar="λ,λ,...",
        help="default: 1; 0 is the base model, drawn once for all adapters",
    )
    add("--count", type=int, default=1, metavar="N", help="pictures a reference")
    add("--seed", type=int, default=0, help="reference k's i-th picture has SEED + k*N + i")
    add("--prompt", default="caption", help="caption (default), none, or a text with {caption} or {FIELD} of "
        "metadata.jsonl in it")  # fmt: skip
    add("--rows", type=int, default=8, metavar="R", help="references in the grid")


def _add_standalone(group: Any) -> None:
    add = group.add_argument
    add("--adapter", action="append", default=[], metavar="[NAME=]FILE", help="may be repeated; a concat ablation too, "
        "which has only λ = 0 and 1")  # fmt: skip
    add("--text-baseline", metavar="FIELD", help="one more method, without adapter: prompted by this field of "
        "metadata.jsonl, a text that says all of the picture")  # fmt: skip
    add("--checkpoint", type=Path, metavar="FILE", help="SD1.x or SD2.x, .safetensors or .ckpt")
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="its yaml; without it, the file of the same name beside it",
    )
    add("--encoder", type=Path, action="append", default=[], metavar="FILE", help="image encoder of the adapters; may "
        "be repeated, or a folder to look in")  # fmt: skip
    add("--fit", choices=FITS, default="crop", help="how references meet the encoder's square")
    add("--negative", default="", metavar="PROMPT")
    add("--steps", type=int, default=50)
    add("--cfg", type=float, default=7.5)
    add("--width", type=int, default=DEFAULT_SIDE)
    add("--height", type=int, default=DEFAULT_SIDE)
    add("--batch", type=int, default=8, help="pictures drawn at a time")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--precision", choices=("float32", "float16"), help="default: float16 on a GPU, else float32")


def _add_remote(group: Any) -> None:
    add = group.add_argument
    add("--webui", metavar="URL", help="its address, http://[user:password@]host:port")
    add("--payload", type=Path, metavar="FILE", help="template of the txt2img body, see below")
    add("--name", metavar="NAME", help="in the table; default: the payload's file name")
    add("--method-json", action="append", default=[], metavar="JSON", help="more of them: {\"name\": ..., \"url\": ..., "
        "\"payload\": FILE}; may be repeated")  # fmt: skip
    add(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="S",
        help=f"seconds for one picture, default {TIMEOUT:g}",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the table and where the rest lies."""
    options = Options(
        weights=_weights(args.weights), count=args.count, seed=args.seed, prompt=args.prompt, batch=args.batch,
        rows=args.rows,
    )  # fmt: skip
    options.check()
    items = read_items(args.references, args.coco, args.limit)
    remote = remote_methods(args)
    device, _ = device_of(args)
    metric = Clip.load(
        args.clip, args.clip_arch, device
    )  # first: it makes its architecture known to open_clip
    results = evaluate(items, [*standalone_methods(args, options), *remote], metric, args.out, options)
    print(results.markdown())
    print(f"pictures, results.json, results.md and figures: {args.out}")
    return 0


def _weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted(float(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError("weights", text, "numbers with commas between, as 0,0.5,1") from None


def standalone_methods(args: argparse.Namespace, options: Options) -> list[Method]:
    """Those of --adapter and --text-baseline; the base model alone where λ = 0 is all that is asked."""
    if not args.checkpoint:
        if args.adapter or args.text_baseline:
            raise ConfigError(
                "checkpoint", None, "a Stable Diffusion checkpoint, for --adapter and --text-baseline"
            )
        return []
    device, dtype = device_of(args)
    sampling = {
        "steps": args.steps,
        "cfg": args.cfg,
        "negative": args.negative,
        "size": (args.width, args.height),
    }
    config = args.config or args.checkpoint.with_suffix(".yaml")
    base = BaseModel(Studio.load(args.checkpoint, config, device, dtype, **sampling))
    files = [_named(text) for text in args.adapter]
    encoders = Encoders(args.encoder or list(dict.fromkeys(path.parent for _, path in files)), device)
    methods: list[Method] = [adapter_method(name, path, base, encoders, args.fit) for name, path in files]
    if args.text_baseline:
        methods.append(TextBaseline(base.studio, args.text_baseline))
    return methods or [base]


def _named(text: str) -> tuple[str, Path]:
    """NAME=FILE, or a file under its own name."""
    name, sign, rest = text.partition("=")
    if sign and not Path(text).is_file():
        return name, Path(rest)
    path = Path(text)
    return (f"{path.stem}-adapter" if path.stem in (BASE, "text") else path.stem), path


def remote_methods(args: argparse.Namespace) -> list[WebUIMethod]:
    """Those of --webui and of each --method-json. Raises ConfigError, FileError."""
    entries: list[Mapping[str, Any]] = []
    if args.webui or args.payload:
        if not (args.webui and args.payload):
            raise ConfigError("payload" if args.webui else "webui", None, "--webui and --payload together")
        entries.append(
            {"name": args.name or args.payload.stem, "url": args.webui, "payload": str(args.payload)}
        )
    entries += [_entry(text) for text in args.method_json]
    return _made(entries, args.timeout)


def _entry(text: str) -> Mapping[str, Any]:
    expected = 'a JSON object of the texts "name", "url" and "payload" (a file)'
    try:
        entry = json.loads(text)
    except ValueError:
        raise ConfigError("method-json", text, expected) from None
    if not isinstance(entry, dict) or set(entry) != {"name", "url", "payload"}:
        raise ConfigError("method-json", text, expected)
    if not all(isinstance(value, str) for value in entry.values()):
        raise ConfigError("method-json", text, expected)
    return entry


def _made(entries: Sequence[Mapping[str, Any]], timeout: float) -> list[WebUIMethod]:
    if timeout <= 0:
        raise ConfigError("timeout", timeout, "seconds above 0")
    try:
        return [WebUIMethod(e["name"], e["url"], read_payload(Path(e["payload"])), timeout) for e in entries]
    except ValueError as error:
        if isinstance(error, IPAdapterError):
            raise
        raise ConfigError("webui", [e["url"] for e in entries], f"addresses ({error})") from None
