"""``generate``: draws pictures from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..adapters.adapter import Adapter
from ..adapters.variant import VariantSpec
from ..attention.session import COND, UNCOND, ImagePrompt
from ..encoders import EncoderSource, identify_encoder, register_configs
from ..errors import BrokenEncoder, FileError, ModelError, UnitError
from ..files.embeds import Encoded
from ..pictures import images
from ..prompts.prepare import Pictures, prepare
from ..prompts.references import expanded, in_turn, singles
from ..unit import COMBINES, FITS, PICTURES, Unit, parse_units
from ..unit.names import Named
from .honoured import check_generate, placed
from .host import Standalone
from .shelf import PathShelf

if TYPE_CHECKING:
    from .sampler import Progress

DEFAULT_SIDE = 512
UNIT_HELP = (
    'one more unit as JSON, as the API takes it: {"model": FILE, "images": [FILE, ...], "weight": 0.5}'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add = parser.add_argument
    add(
        "--checkpoint", type=Path, metavar="FILE", required=True, help="SD1.x or SD2.x, .safetensors or .ckpt"
    )
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="its yaml; without it, the file of the same name beside it",
    )
    add("--prompt", default="")
    add("--negative", default="", metavar="PROMPT")
    add_unit_arguments(parser)
    add("--steps", type=int, default=50)
    add("--cfg", type=float, default=7.5)
    add("--seed", type=int, default=-1, help="-1: a random one")
    add("--width", type=int)
    add("--height", type=int)
    add("--batch", type=int, default=1)
    add("--init-image", type=Path, metavar="FILE", help="begin from this picture")
    add("--strength", type=float, default=0.75, help="how much of it is drawn anew, 0..1")
    add("--mask", type=Path, metavar="FILE", help="white is repainted, black stays")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--precision", choices=("float32", "float16"), help="default: float16 on a GPU, else float32")
    add("--out", type=Path, default=Path("out.png"), metavar="FILE")


def add_unit_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say the units."""
    add = parser.add_argument
    add("--adapter", type=Path, metavar="FILE", help="without it, the base model draws alone")
    add("--encoder", type=Path, metavar="FILE", help="the image encoder")
    add("--encoder-dir", type=Path, action="append", default=[], metavar="DIR", help="where to look for it")
    add(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="reference picture; may be repeated",
    )
    add("--image-weight", type=float, action="append", default=[], metavar="W", help="one for each --image")
    add(
        "--embeds",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="saved embeds, as a reference",
    )
    add("--weight", type=float, default=1.0)
    add("--start", type=float, default=0.0)
    add("--end", type=float, default=1.0)
    add("--fit", choices=FITS, default="crop")
    add("--combine", choices=COMBINES, default="concat")
    add("--unit", action="append", default=[], metavar="JSON", help=UNIT_HELP)


def run(args: argparse.Namespace) -> int:
    """Writes --out, or OUT-1, OUT-2, ... of a batch, and says so."""
    args.seed = random.randrange(2**32) if args.seed == -1 else args.seed
    args.config = args.config or args.checkpoint.with_suffix(".yaml")
    units = read_units(args)
    _checked(units, args.mask is not None)
    init = images.load(args.init_image) if args.init_image else None
    mask = images.load_mask(args.mask) if args.mask else None
    paths = _targets(args.out, args.batch)
    device, dtype = device_of(args)
    prompts = image_prompts(units, args, device)
    host = Standalone.load(args.checkpoint, args.config, device, dtype)
    size = _size(args, init, host.multiple)
    prompts = placed(prompts, units, size, mask)
    pictures = _draw(host, args, prompts, size, init, mask)
    for index, (picture, path) in enumerate(zip(pictures, paths)):
        _save(picture, path, _metadata(args, units, size, args.seed + index))
        print(path)
    return 0


def _checked(units: Sequence[Unit], inpaints: bool) -> None:
    for index, unit in enumerate(units):
        try:
            check_generate(unit, inpaints)
        except UnitError as error:
            raise error.in_unit(index) from None


def read_units(args: argparse.Namespace) -> list[Unit]:
    """The units of --adapter and of each --unit that are enabled. Raises UnitError."""
    values: list[Any] = []
    if args.adapter:
        values.append(_plain_unit(args))
    elif args.image or args.embeds:
        raise UnitError("image", str((args.image or args.embeds)[0]), "an --adapter that takes it")
    values += [_json_unit(text) for text in args.unit]
    return [unit for unit in parse_units(values) if unit.enabled]


def _plain_unit(args: argparse.Namespace) -> dict[str, Any]:
    weights = args.image_weight or [1.0] * len(args.image)
    if len(weights) != len(args.image):
        raise UnitError("image-weight", weights, f"{len(args.image)} weights, one for each --image, or none")
    pictures = [{"image": images.load(path), "weight": weight} for path, weight in zip(args.image, weights)]
    pictures += [{"embeds": str(path)} for path in args.embeds]
    fields = ("weight", "start", "end", "fit", "combine")
    return {"model": str(args.adapter), "images": pictures, **{name: getattr(args, name) for name in fields}}


def _json_unit(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        raise UnitError("unit", text, "a JSON object") from None
    if not isinstance(value, Mapping) or not isinstance(value.get("images"), list):
        return value  # refused, with reasons, by Unit.parse
    opened = {name: [_opened(x) for x in value[name]] if isinstance(value[name], list) else _opened(value[name])
              for name in PICTURES if name in value}  # fmt: skip
    return {**value, **opened}


def _opened(item: Any) -> Any:
    """Text that names a file is the picture in it; anything else stays."""
    if isinstance(item, Mapping) and "image" in item:
        return {**item, "image": _opened(item["image"])}
    if isinstance(item, str) and len(item) < 1024 and Path(item).is_file():
        return images.load(Path(item))
    return item


class _OneEncoder(EncoderSource):
    """Features by the file of --encoder, whatever its name."""

    def __init__(self, file: Path, device: torch.device) -> None:
        super().__init__([file.parent], device=device)
        self.file = file

    def path(self, spec: VariantSpec) -> Path:
        found = identify_encoder(self.file)
        if found is None or found.name != spec.encoder:
            raise BrokenEncoder(
                f"{self.file.name}: it is {found.name if found else 'no CLIP image encoder'}, but the adapter takes "
                f"{spec.feature} features of width {spec.feature_width} of {spec.encoder or 'an unknown encoder'}"
            )
        return self.file


def image_prompts(units: Sequence[Unit], args: argparse.Namespace, device: torch.device) -> list[ImagePrompt]:
    """The units, ready to run but for their regions. Raises FileError, EncoderError, ImageError."""
    source, shelf = encoder_source(units, args, device), PathShelf()
    prompts = []
    for unit in units:
        each = [unit] if unit.distribute == "together" else singles(unit, range(args.batch), shelf)
        adapter = Adapter.load(unit.model)
        whole = [expanded(one, shelf) for one in each]
        prompts.append(in_turn([prepare(one, loaded(one), adapter, source) for one in whole]))
    source.pool.release()
    return prompts


def loaded(unit: Unit) -> Pictures:
    """The unit's pictures, none of them Named. Raises ImageError."""
    references, negative = ([ref.image for ref in refs] for refs in (unit.images, unit.negative))
    focus = None if unit.focus is None else images.load_mask(unit.focus)
    if focus is not None and focus.getbbox() is None:
        raise UnitError(
            "focus", "a reference mask that is black all over", "one that is white where the reference counts"
        )
    return Pictures(
        [image if isinstance(image, Encoded) else images.load_reference(image) for image in references],
        [images.load_reference(image) for image in negative],
        focus,
    )


def encoder_source(
    units: Sequence[Unit], args: argparse.Namespace, device: torch.device | str = "cpu"
) -> EncoderSource:
    """Where features come from, by --encoder and --encoder-dir."""
    folders = [*args.encoder_dir, *([args.encoder.parent] if args.encoder else [])]
    folders = folders or list(dict.fromkeys(Path(unit.model).parent for unit in units))
    register_configs(folders)
    device = torch.device(device)
    return _OneEncoder(args.encoder, device) if args.encoder else EncoderSource(folders, device=device)


def device_of(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Device and dtype by --device and --precision. Raises ModelError."""
    cuda = torch.cuda.is_available()
    if args.device == "cuda" and not cuda:
        raise ModelError("--device cuda: torch sees no GPU; use --device cpu, or install torch with CUDA")
    name = ("cuda" if cuda else "cpu") if args.device == "auto" else args.device
    precision = args.precision or ("float16" if name == "cuda" else "float32")
    return torch.device(name), getattr(torch, precision)


def _size(args: argparse.Namespace, init: Image.Image | None, multiple: int) -> tuple[int, int]:
    """As asked for, else the init image's, else 512, to the next multiple."""
    own = init.size if init else (DEFAULT_SIDE, DEFAULT_SIDE)
    width, height = (max(multiple, round(side / multiple) * multiple) for side in own)
    return args.width or width, args.height or height


def _draw(
    host: Standalone,
    args: argparse.Namespace,
    prompts: Sequence[ImagePrompt],
    size: tuple[int, int],
    init: Image.Image | None,
    mask: Image.Image | None,
) -> list[Image.Image]:
    from tqdm import tqdm

    with tqdm(total=args.steps, file=sys.stderr, unit="step") as bar:
        return host.generate(
            args.prompt,
            args.negative,
            prompts,
            steps=args.steps,
            cfg=args.cfg,
            seed=args.seed,
            size=size,
            batch=args.batch,
            init_image=init,
            strength=args.strength,
            mask=mask,
            progress=_on(bar),
            sets=_sets(prompts, args.batch),
        )


def _sets(prompts: Sequence[ImagePrompt], batch: int) -> list[int] | None:
    """Token sets of the rows, where each picture has its own."""
    if all(len(prompt.tokens) == 2 for prompt in prompts):
        return None
    return [*range(COND, 2 * batch, 2), *range(UNCOND, 2 * batch, 2)]


def _on(bar: Any) -> Progress:
    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show


def _targets(out: Path, batch: int) -> list[Path]:
    """Where the pictures go. Checked before anything is drawn."""
    if out.suffix.lower() != ".png":
        raise FileError(out, "expected a name that ends in .png")
    if not out.absolute().parent.is_dir():
        raise FileError(out, f"the folder {out.parent} does not exist; make it first")
    return [out] if batch == 1 else [out.with_name(f"{out.stem}-{i + 1}{out.suffix}") for i in range(batch)]


def _metadata(args: argparse.Namespace, units: Sequence[Unit], size: tuple[int, int], seed: int) -> PngInfo:
    """Text chunks: ``parameters`` as the WebUI writes them, ``ip_adapter`` as JSON."""
    fields = {
        "Steps": args.steps,
        "Sampler": "DDIM",
        "CFG scale": f"{args.cfg:g}",
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": args.checkpoint.stem,
        **({"Denoising strength": f"{args.strength:g}"} if args.init_image else {}),
    }
    negative = f"\nNegative prompt: {args.negative}" if args.negative else ""
    info = PngInfo()
    line = ", ".join(f"{name}: {value}" for name, value in fields.items())
    info.add_text("parameters", f"{args.prompt}{negative}\n{line}", zip=False)
    if units:
        info.add_text("ip_adapter", json.dumps([_unit_text(unit) for unit in units]))
    return info


def _unit_text(unit: Unit) -> dict[str, Any]:
    """A unit without its pictures, of which the hashes are kept."""
    shown = dataclasses.replace(unit, model=Path(unit.model).stem).changed()
    return {**shown, "images": [{**_named(r.image), "weight": r.weight} for r in unit.images]}


def _named(image: Any) -> dict[str, str]:
    if isinstance(image, Named):
        return {image.kind: Path(image.name).stem}
    return {"hash": images.content_hash(images.load(image))}


def _save(picture: Image.Image, path: Path, info: PngInfo) -> None:
    try:
        picture.save(path, pnginfo=info)
    except OSError as error:
        raise FileError(path, f"cannot be written: {error.strerror or error}") from None
