"""``generate``: samples pictures from the command line."""

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
from ..attention.session import COND, UNCOND, ImagePrompt
from ..encoders import EncoderSource, Need, identify_encoder, weight_file
from ..encoders.recognise import Recognised
from ..errors import BrokenEncoder, FileError, ModelError, UnitError
from ..faces import FaceAnalyser, FacePacks
from ..faces.packs import own_folder
from ..options import add_flags, canonical, from_flags
from ..pictures import images
from ..pictures.picture import Pictures
from ..prompts.image_prompt import in_turn
from ..prompts.pipeline import Pipeline
from ..prompts.resolve import one_per_picture, resolve
from ..unit import FIELDS, PICTURES, Unit, parse_units
from ..unit.names import Named
from .honoured import check_control, check_generate, placed
from .host import Standalone
from .options import GenerateOptions, UnitOptions
from .store import PathStore

if TYPE_CHECKING:
    from .sampler import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_flags(parser, GenerateOptions)


def run(args: argparse.Namespace) -> int:
    """Writes --out, or OUT-1, OUT-2, ... of a batch, and prints the names."""
    options = from_flags(GenerateOptions, args)
    if options.seed == -1:
        options = dataclasses.replace(options, seed=random.randrange(2**32))
    units = read_units(options)
    _checked(units, options.mask is not None)
    init = images.load(options.init_image) if options.init_image else None
    mask = images.load_mask(options.mask) if options.mask else None
    paths = _targets(options.out, options.batch)
    device, dtype = device_of(options)
    prompts = image_prompts(units, options, device)
    config = options.config or options.checkpoint.with_suffix(".yaml")
    host = Standalone.load(options.checkpoint, config, device, dtype, options.prediction)
    size = _size(options, init, host.multiple, host.side)
    prompts = placed(prompts, units, size, mask)
    pictures = _sample(host, options, prompts, size, init, mask)
    for index, (picture, path) in enumerate(zip(pictures, paths, strict=True)):
        _save(picture, path, _metadata(options, units, size, options.seed + index))
        print(path)
    return 0


def _checked(units: Sequence[Unit], inpaints: bool) -> None:
    for index, unit in enumerate(units):
        try:
            check_generate(unit, inpaints)
        except UnitError as error:
            raise error.in_unit(index) from None


def read_units(options: UnitOptions) -> list[Unit]:
    """The units of --adapter and of each --unit that are enabled. Raises UnitError."""
    values: list[Any] = []
    if options.adapter:
        values.append(_plain_unit(options))
    elif options.image or options.embeds:
        raise UnitError("image", str((options.image or options.embeds)[0]), "an --adapter that takes it")
    values += [_json_unit(text) for text in options.unit]
    return [unit for unit in parse_units(values) if unit.enabled]


def _plain_unit(options: UnitOptions) -> dict[str, Any]:
    weights = options.image_weight or (1.0,) * len(options.image)
    if len(weights) != len(options.image):
        raise UnitError("image-weight", weights, f"{len(options.image)} weights, one for each --image, or none")
    pictures = [
        {"image": images.load(path), "weight": weight} for path, weight in zip(options.image, weights, strict=True)
    ]
    pictures += [{"embeds": str(path)} for path in options.embeds]
    fields = ("weight", "start", "end", "fit", "combine", "face", "shortcut", "lora", "kind")
    return {
        "model": str(options.adapter),
        "images": pictures,
        **{name: getattr(options, name) for name in fields},
    }


def _json_unit(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        raise UnitError("unit", text, "a JSON object") from None
    if not isinstance(value, Mapping) or not isinstance(value.get("images"), list):
        return value  # refused, with reasons, by Unit.parse
    value = canonical(FIELDS, value)
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
        super().__init__([file], device=device)
        self.file = file

    def _find(self, need: Need) -> Recognised:
        found = identify_encoder(self.file)
        if found is None or found.name not in (need.encoder, self.named(need).encoder):
            raise BrokenEncoder(
                f"{self.file.name}: it is {found.name if found else 'no CLIP image encoder'}, but the adapter "
                f"takes {need}"
                f"{'' if need.encoder else ' of an unknown encoder'}"
            )
        return Recognised(self.file, found)


def image_prompts(units: Sequence[Unit], options: GenerateOptions, device: torch.device) -> list[ImagePrompt]:
    """The units, ready to run but for their regions. Raises FileError, EncoderError, ImageError."""
    source, store = encoder_source(units, options, device), PathStore()
    pipeline, pictures, prompts = Pipeline(source, faces=face_analyser(options)), Pictures(), []
    for unit in units:
        each = [unit] if unit.distribute == "together" else one_per_picture(unit, range(options.batch), store)
        adapter = Adapter.load(unit.model).as_kind(unit.kind)
        check_control(unit, adapter.spec.posed)
        resolved = [resolve(one, store, pictures) for one in each]
        prompts.append(in_turn([pipeline.prompt(one, adapter) for one in resolved]))
    source.pool.release()
    return prompts


def encoder_source(units: Sequence[Unit], options: UnitOptions, device: torch.device | str = "cpu") -> EncoderSource:
    """Where features come from, by --encoder and --encoder-dir."""
    device = torch.device(device)
    if options.encoder:
        return _OneEncoder(weight_file(options.encoder), device)
    folders = options.encoder_dir or list(dict.fromkeys(Path(unit.model).parent for unit in units))
    return EncoderSource(folders, device=device)


def face_analyser(options: Any) -> FaceAnalyser:
    """What finds and recognises faces, by --face-models."""
    folders = options.face_models or (own_folder(),)
    return FaceAnalyser(FacePacks(lambda: folders))


def device_of(options: Any) -> tuple[torch.device, torch.dtype]:
    """Device and dtype by --device and --precision. Raises ModelError."""
    cuda = torch.cuda.is_available()
    if options.device == "cuda" and not cuda:
        raise ModelError("--device cuda: torch sees no GPU; use --device cpu, or install torch with CUDA")
    name = ("cuda" if cuda else "cpu") if options.device == "auto" else options.device
    precision = options.precision or ("float16" if name == "cuda" else "float32")
    return torch.device(name), getattr(torch, precision)


def _size(options: GenerateOptions, init: Image.Image | None, multiple: int, side: int) -> tuple[int, int]:
    """As asked for, else the init image's, else a square of ``side``, to the next multiple."""
    own = init.size if init else (side, side)
    width, height = (max(multiple, round(side / multiple) * multiple) for side in own)
    return options.width or width, options.height or height


def _sample(
    host: Standalone,
    options: GenerateOptions,
    prompts: Sequence[ImagePrompt],
    size: tuple[int, int],
    init: Image.Image | None,
    mask: Image.Image | None,
) -> list[Image.Image]:
    from tqdm import tqdm

    with tqdm(total=options.steps, file=sys.stderr, unit="step") as bar:
        return host.generate(
            options.prompt,
            options.negative,
            prompts,
            steps=options.steps,
            cfg=options.cfg,
            seed=options.seed,
            size=size,
            batch=options.batch,
            init_image=init,
            strength=options.strength,
            mask=mask,
            progress=_on(bar),
            sets=_sets(prompts, options.batch),
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


def _metadata(options: GenerateOptions, units: Sequence[Unit], size: tuple[int, int], seed: int) -> PngInfo:
    """Text chunks: ``parameters`` as the WebUI writes them, ``ip_adapter`` as JSON."""
    fields = {
        "Steps": options.steps,
        "Sampler": "DDIM",
        "CFG scale": f"{options.cfg:g}",
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": options.checkpoint.stem,
        **({"Denoising strength": f"{options.strength:g}"} if options.init_image else {}),
    }
    negative = f"\nNegative prompt: {options.negative}" if options.negative else ""
    info = PngInfo()
    line = ", ".join(f"{name}: {value}" for name, value in fields.items())
    info.add_text("parameters", f"{options.prompt}{negative}\n{line}", zip=False)
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
