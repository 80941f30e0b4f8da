"""The X/Y/Z plot's axes check their values before the first cell; the WebUI's modules are stand-ins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import sys, types
from pathlib import Path
from PIL import Image

for name in ("modules", "modules.shared", "gradio"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["modules"].shared = sys.modules["modules.shared"]

from lib_ipadapter.errors import IPAdapterError
from lib_ipadapter.unit import FIELDS
from lib_ipadapter.webui.store import HostStore
from lib_ipadapter.webui.xyz import Axis

models = types.SimpleNamespace(shelf=lambda: HostStore(Path(sys.argv[1]), None))
axis = Axis(next(field for field in FIELDS if field.name == "images"), 0, models, lambda p: [{"enabled": True}])
for job in (types.SimpleNamespace(init_images=[Image.new("RGB", (8, 8))]), types.SimpleNamespace()):
    for value in ("input: img2img", "folder: none"):
        try:
            axis.confirm(job, [value])
            print("taken")
        except IPAdapterError as error:
            print(error)
"""


def test_img2imgs_picture_is_a_value_where_there_is_one(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
    taken, missing, refused, _ = answer.stdout.splitlines()
    assert taken == "taken"
    assert "got 'none', expected the name of a folder" in missing
    assert refused.startswith("X/Y/Z plot, [IP-Adapter] Reference file: ")
    assert "expected a job of img2img" in refused
