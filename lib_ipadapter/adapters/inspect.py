"""``inspect``: what adapter files are, which base model and which encoder they need."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import FileError
from .file import open_adapter, sha256
from .variant import identify_file


def report(path: Path | str) -> dict[str, Any]:
    """Describes one adapter file, JSON-safe; ``unused``: the keys beside the adapter, by what they are. Raises
    FileError."""
    path = Path(path)
    file = open_adapter(path)
    spec = asdict(identify_file(file))
    spec["layers"] = len(spec["widths"])
    spec["widths"] = list(spec["widths"])
    return {
        "file": path.name,
        **spec,
        "dtype": ", ".join(name for name, _ in Counter(file.dtypes.values()).most_common()),
        "format": file.format,
        "size": path.stat().st_size,
        "sha256": sha256(path),
        "metadata": file.metadata,
        "unused": file.unused,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def run(args: argparse.Namespace) -> int:
    """Exit code 1 when a file could not be used; the others are still shown."""
    reports, failed = [], 0
    for path in args.files:
        try:
            reports.append(report(path))
        except FileError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            reports.append({"file": path.name, "error": type(error).__name__, "message": str(error)})
    if args.json:
        print(json.dumps(reports, indent=2))
    else:
        print("\n\n".join(_text(entry) for entry in reports if "error" not in entry))
    return 1 if failed else 0


def _text(entry: dict[str, Any]) -> str:
    rows = {
        "variant": f"{entry['label']} ({entry['variant']})",
        "base model": entry["base"],
        "encoder": _takes(entry["encoder"], entry["feature"], entry["feature_width"]),
        **_also(entry["also"]),
        "tokens": f"{entry['tokens']} per picture, {entry['context']} wide",
        "layers": f"{entry['layers']} cross-attention layers",
        **({"LoRA": f"rank {entry['lora_rank']}, on self- and cross-attention"} if entry["lora_rank"] else {}),
        **(
            {"kinds": f"{' or '.join(entry['kinds'])}: the file does not tell, a unit's kind does"}
            if len(entry["kinds"]) > 1
            else {}
        ),
        "weights": f"{entry['dtype']}, {entry['format']}, {entry['size'] / 1e6:.1f} MB",
        "sha256": entry["sha256"],
        **({"not used": "; ".join(_beside(*item) for item in entry["unused"].items())} if entry["unused"] else {}),
        **{f"metadata {key}": value for key, value in entry["metadata"].items()},
    }
    return "\n".join([entry["file"], *(f"  {name:<12} {value}" for name, value in rows.items())])


def _also(needs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What it takes beside its first feature, by what it is of."""
    rows: dict[str, list[str]] = {}
    for need in needs:
        taken = _takes(need["encoder"], need["feature"], need["width"])
        rows.setdefault(f"and of the {need['of']}", []).append(taken)
    return {name: "; ".join(taken) for name, taken in rows.items()}


def _takes(encoder: str, feature: str, width: int) -> str:
    what = {"face": "face embedding of length 1", "raw face": "face embedding"}.get(feature, f"{feature} features")
    return f"{encoder or 'none known'}, {what} of width {width}"


def _beside(kind: str, keys: list[str], most: int = 2) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{kind} ({', '.join(keys[:most])}{more})"
