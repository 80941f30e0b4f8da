"""Copies the trained adapters to the other weights, in float16, and writes SHA256SUMS."""

from __future__ import annotations

import hashlib

from lib_ipadapter.adapters.file import open_adapter, save_adapter

from . import models

ADAPTERS = {"base": models.BASE_ADAPTER, "plus": models.PLUS_ADAPTER, "concat": models.CONCAT_ADAPTER}
RUNS = models.HERE / "run"
SUMS = models.WEIGHTS / "SHA256SUMS"


def main() -> int:
    """Copies RUN/adapter-*/ip_adapter.safetensors and prints the file sizes."""
    for name, path in ADAPTERS.items():
        file = open_adapter(RUNS / f"adapter-{name}" / "ip_adapter.safetensors")
        save_adapter({key: value.half() for key, value in file.tensors().items()}, path, file.metadata)
    files = sorted(path for path in models.WEIGHTS.iterdir() if path.suffix in (".safetensors", ".yaml", ".json"))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    SUMS.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()), encoding="utf-8")
    for path in files:
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.name}")
    print(f"{sum(path.stat().st_size for path in files) / 1e6:6.2f} MB in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
