"""What the extension costs the real WebUI: start-up seconds, and RAM over many references.

    python benchmarks/webui.py startup [--rounds 5]
    python benchmarks/webui.py memory [--references 30]
    python benchmarks/webui.py generations [--count 1000]

Needs the WebUI where the tests find it. Start-up: the WebUI's own "Startup time", with and without the
extension in turn, medians; and the time of install.py, which the launcher runs in a process of its own.
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
from tests.webui.harness import WebUI, absent, b64, picture, python
from tests.webui.networks import CONTEXT, SD1_WIDTHS

WIDTH = 1152


def startup_seconds(with_extension: bool) -> float:
    with WebUI(("sd1",), extra=(), with_extension=with_extension) as webui:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if found := re.search(r"Startup time: ([\d.]+)s", webui.log):
                return float(found[1])
            time.sleep(0.2)
        raise SystemExit(f"the WebUI did not say how long it took:\n{webui.log[-2000:]}")


def startup(rounds: int) -> None:
    times: dict[bool, list[float]] = {True: [], False: []}
    for i in range(rounds + 1):
        for with_extension in (False, True):
            seconds = startup_seconds(with_extension)
            if i:  # the first round fills the disk's cache, and writes the bytecode
                times[with_extension].append(seconds)
    base, ours = (statistics.median(times[key]) for key in (False, True))
    start = time.perf_counter()
    subprocess.run([python(), ROOT / "install.py"], check=True)
    install = time.perf_counter() - start
    print(f"start-up without {base:.2f} s, with {ours:.2f} s: {ours - base:+.2f} s (spread without: "
          f"{max(times[False]) - min(times[False]):.2f} s); install.py {install:.2f} s")  # fmt: skip


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
    parser.add_argument("--references", type=int, default=30)
    parser.add_argument("--count", type=int, default=1000)
    args = parser.parse_args()
    if reason := absent():
        raise SystemExit(reason)
    if args.what == "startup":
        startup(args.rounds)
    elif args.what == "memory":
        memory(args.references)
    else:
        generations(args.count)


if __name__ == "__main__":
    main()
