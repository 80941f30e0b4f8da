"""What the extension costs the real WebUI: start-up seconds, and RAM over many references.

    python benchmarks/webui.py startup [--rounds 5] [--against CHECKOUT]
    python benchmarks/webui.py memory [--references 30]
    python benchmarks/webui.py generations [--count 1000]

Needs the WebUI where the tests find it.
Start-up: the WebUI's own "Startup time", with and without the extension in turn, and with that of another checkout of
it; and the time of install.py, which the launcher runs in a process of its own.
Memory: the WebUI process's own RAM (RssAnon) after 3 and after N different references to a plus adapter,
whose features are the largest that are cached (257 tokens of 1152). Generations: the same RAM after each tenth of
``count`` pictures of a small model with one unit.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.synthetic import adapter_tensors, write_adapter
from tests.webui import harness
from tests.webui.harness import WebUI, absent, b64, picture, python
from tests.webui.networks import CONTEXT, SD1_WIDTHS
from tests.webui.with_page import WithPage

WIDTH = 1152


def startup_seconds(checkout: Path | None) -> float:
    """With the extension of this checkout, or without."""
    harness.REPO = checkout or ROOT
    # With its page the WebUI must not be asked anything before it is up, which WithPage takes care of.
    with WithPage(("sd1",), extra=(), with_extension=checkout is not None) as webui:
        found = re.search(r"Startup time: ([\d.]+)s", webui.log)
        if not found:
            raise SystemExit(f"the WebUI did not say how long it took:\n{webui.log[-2000:]}")
        return float(found[1])


def startup(rounds: int, against: Path | None) -> None:
    kinds = {"without": None, "with": ROOT, **({f"with {against}": against} if against else {})}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for i in range(rounds + 1):
        for name, checkout in kinds.items():
            seconds = startup_seconds(checkout)
            if i:  # the first round fills the disk's cache, and writes the bytecode
                times[name].append(seconds)
    median, least = (statistics.median(times["without"]), min(times["without"]))
    for name, own in times.items():
        print(f"start-up {name}: median {statistics.median(own):.2f} s ({statistics.median(own) - median:+.2f}), "
              f"min {min(own):.2f} s ({min(own) - least:+.2f}), max {max(own):.2f} s")  # fmt: skip
    start = time.perf_counter()
    subprocess.run([python(), ROOT / "install.py"], check=True)
    print(f"install.py {time.perf_counter() - start:.2f} s")


def wide_encoder(folder: Path) -> None:
    """A vision tower of few layers whose penultimate features are as large as ViT-H's."""
    from open_clip.transformer import VisionTransformer
    from safetensors.torch import save_file

    tower = VisionTransformer(
        image_size=224, patch_size=14, width=WIDTH, layers=2, heads=18, mlp_ratio=2.0, output_dim=64
    )
    state = {f"visual.{key}": value.contiguous() for key, value in tower.state_dict().items()}
    save_file(state, folder / "wide.safetensors")
    vision = {"image_size": 224, "layers": 2, "width": WIDTH, "patch_size": 14, "mlp_ratio": 2.0}
    (folder / "wide.json").write_text(json.dumps({"embed_dim": 64, "vision_cfg": vision}))


def own_ram(pid: int) -> float:
    """MB of a process that are its own."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def memory(references: int) -> None:
    with WebUI(("sd1",)) as webui:
        wide_encoder(webui.data / "models" / "clip_vision")
        tensors = adapter_tensors("plus", CONTEXT, SD1_WIDTHS, WIDTH)
        write_adapter(webui.data / "models" / "ipadapter" / "wide-plus.safetensors", tensors)
        assert webui.process is not None
        for i in range(references):
            webui.images({"model": "wide-plus", "images": [b64(picture(i, (512, 512)))]}, steps=1)
            if i + 1 in (3, references):
                ram = own_ram(webui.process.pid)
                print(f"after {i + 1} references: {ram:.0f} MB", flush=True)


def generations(count: int) -> None:
    with WebUI(("sd1",)) as webui:
        assert webui.process is not None
        unit = {"model": "sd1-base", "images": [b64(picture(0))]}
        for i in range(1, count + 1):
            webui.images(unit, steps=1, seed=i)
            if i % max(1, count // 10) == 0:
                print(f"after {i} pictures: {own_ram(webui.process.pid):.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("startup", "memory", "generations"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout of this extension, to compare its start-up")
    parser.add_argument("--references", type=int, default=30)
    parser.add_argument("--count", type=int, default=1000)
    args = parser.parse_args()
    if reason := absent():
        raise SystemExit(reason)
    if args.what == "startup":
        startup(args.rounds, args.against and args.against.resolve())
    elif args.what == "memory":
        memory(args.references)
    else:
        generations(args.count)


if __name__ == "__main__":
    main()
