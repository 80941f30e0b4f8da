"""What known references cost before the first step, as ratios in one run.

    python benchmarks/references.py [--width 4000] [--layers 4]

A job is all that this package does before a sampler's first step: resolve, preprocess, encode, combine, project, and
K', V' of the layers of SD1.5. The encoder is ViT-H's tower with fewer layers and random weights, the adapter a plus
adapter with random weights. Printed: the second job with four references of 12 megapixels against the first (at most
0.05), sixteen tiles against one (at most 1.1), and what 64 references cost when they come again (nothing is encoded,
within 256 MB).
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, not installed

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.keyvalue import KeyValue, Projected
from lib_ipadapter.attention.layers import cross_attention_layers, layer_weights
from lib_ipadapter.cache import Cache
from lib_ipadapter.encoders import EncoderPool, EncoderSource, EncoderSpec, register
from lib_ipadapter.encoders.layout import tower_shapes
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.prompts.pipeline import Caches, Pipeline
from lib_ipadapter.prompts.references import NoStore
from lib_ipadapter.prompts.resolve import resolve
from lib_ipadapter.unit import Unit
from tests.synthetic import SD1_WIDTHS, adapter_tensors, write_adapter
from tests.tiny import Attention

HEADS = 8


class UNet(nn.Module):
    """The cross-attention layers of SD1.5, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        order = (*SD1_WIDTHS[:6], SD1_WIDTHS[-1], *SD1_WIDTHS[6:-1])
        parts = [nn.ModuleList(), nn.ModuleList(), nn.ModuleList()]
        for i, width in enumerate(order):
            block = nn.Module()
            block.attn2 = Attention(width, 768, HEADS)
            parts[0 if i < 6 else 1 if i == 6 else 2].append(block)
        self.input_blocks, self.middle_block, self.output_blocks = parts


class Jobs:
    """The jobs of one process."""

    def __init__(self, folder: Path, layers: int) -> None:
        spec = register(EncoderSpec("bench", 224, 14, 1280, layers, 16, 1024))
        shapes = tower_shapes(spec).items()
        save_file({key: torch.randn(shape) * 0.02 for key, shape in shapes}, folder / "bench.safetensors")
        tensors = adapter_tensors(
            "plus", context=768, widths=SD1_WIDTHS, feature_width=1280, tokens=16, dim=768, inner=768, depth=4
        )
        path = write_adapter(folder / "plus.safetensors", tensors, encoder="bench", trained_with="bench")
        self.adapter, self.pool = Adapter.load(path), EncoderPool()
        self.layers = cross_attention_layers(UNet())
        self.folder, self.pictures, self.caches = folder, Pictures(), Caches()
        self.projected: Cache[Projected] = Cache(lambda: 2**26, lambda entry: entry.nbytes)

    def run(self, references: Sequence[str]) -> float:
        """Seconds from the request to the K', V' of the first step."""
        begin = time.perf_counter()
        unit = Unit.parse({"model": "plus", "images": list(references)})
        pipeline = Pipeline(EncoderSource([self.folder], self.pool), self.caches)
        prompt = pipeline.prompt(resolve(unit, NoStore(), self.pictures), self.adapter)
        kv = KeyValue(prompt, self.projected)
        kv.fit(layer_weights(prompt.rule, prompt.weight, self.layers))
        for layer in self.layers:
            kv.at(layer, torch.zeros(2, 1, layer.width), (0, 1))
        return time.perf_counter() - begin


def jpeg(seed: int, width: int) -> str:
    """A picture of width x 3/4 width as base64, with the detail of a photo."""
    coarse = np.random.default_rng(seed).integers(0, 256, (width // 16 * 3 // 4, width // 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, width * 3 // 4)).save(buffer, "JPEG", quality=92)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4000, help="of the references, pixels")
    parser.add_argument("--layers", type=int, default=4, help="of the encoder; ViT-H has 32")
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        jobs = Jobs(Path(folder), args.layers)
        jobs.run([jpeg(99, 64)])  # imports, the encoder's file, the projection
        references = [jpeg(i, args.width) for i in range(4)]
        first = jobs.run(references)
        # Another request brings texts of its own; the tiles of a job below have the same ones.
        second = min(jobs.run([text[:1] + text[1:] for text in references]) for _ in range(5))
        print(f"four references of {args.width * args.width * 3 / 4e6:.0f} MP: first job {first:.2f} s, "
              f"second {second * 1000:.0f} ms, ratio {second / first:.3f} (at most 0.05)")  # fmt: skip
        fresh = [jpeg(i, args.width) for i in range(10, 14)]
        one = jobs.run(fresh)
        rest = sum(jobs.run(fresh) for _ in range(15))
        print(f"sixteen tiles: {(one + rest) / one:.2f} times one (at most 1.1)")
        many = [jpeg(i, 256) for i in range(100, 164)]
        jobs.run(many)
        decoded, loaded = jobs.pictures.decoded, len(jobs.caches.features)
        again = jobs.run(many)
        size = (jobs.caches.features.size + jobs.caches.tokens.size) / 2**20
        print(f"64 references again: {again * 1000:.0f} ms, {jobs.pictures.decoded - decoded} decoded, "
              f"{len(jobs.caches.features) - loaded} encoded, {size:.0f} MB cached (at most 256)")  # fmt: skip


if __name__ == "__main__":
    main()
