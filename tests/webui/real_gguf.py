"""Splits a checkpoint in two, as Forge takes it: the UNet as GGUF, its Linears in 8 bits (Q8_0), and all the rest.

Run with Forge's own Python, in its folder: python real_gguf.py CHECKPOINT OUT.gguf REST.safetensors."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd() / "packages_3rdparty"))

import gguf
import numpy as np
from safetensors.numpy import save_file
from safetensors.torch import load_file

UNET = "model.diffusion_model."


def main(source: str, out: str, rest: str) -> None:
    tensors = {name: value.float().numpy() for name, value in load_file(source).items()}
    writer = gguf.GGUFWriter(out, "sd1")
    for name, value in tensors.items():
        if not name.startswith(UNET):
            continue
        kind = gguf.GGMLQuantizationType.F32
        if value.ndim == 2 and "_embed" not in name:
            kind = gguf.GGMLQuantizationType.Q8_0
        elif value.ndim > 1:
            kind = gguf.GGMLQuantizationType.F16
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file({name: value.astype(np.float16) for name, value in tensors.items() if not name.startswith(UNET)}, rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
