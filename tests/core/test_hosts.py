"""The hosts of the Forge family, each by what it has and lacks, in a process of its own with stand-ins for its modules:
the extension loads, finds its folders and asks the host's memory manager. tests/webui runs Forge and reForge; what Neo
and classic have was read in their sources."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from tests.synthetic import adapter_tensors, write_adapter
from tests.tiny import CONTEXT, UNet

ROOT = Path(__file__).resolve().parents[2]
BACKEND, PATCHED = "backend.memory_management", "ldm_patched.modules.model_management"
CALLBACKS = ["app_started", "ui_settings", "ui_tabs", "cfg_denoiser", "cfg_after_cfg", "script_unloaded", "before_ui",
             "after_component"]  # fmt: skip
HOSTS: dict[str, dict[str, Any]] = {
    "forge": {"manager": BACKEND, "callbacks": [*CALLBACKS, "cfg_denoised"], "also": ["lowvram", "sd_unet"],
              "options": {"ckpt_dir": "/ckpt", "controlnet_dir": "/cn"}},
    "reforge": {"manager": PATCHED, "callbacks": [*CALLBACKS, "cfg_denoised"], "also": ["lowvram", "sd_unet"],
                "options": {"ckpt_dir": "/ckpt", "controlnet_dir": "/cn"}},
    "classic": {"manager": PATCHED, "callbacks": [*CALLBACKS, "cfg_denoised"], "also": ["sd_unet"],
                "options": {"ckpt_dir": "/ckpt", "controlnet_dir": "/cn"}},
    # No open_clip, no cfg_denoised, several folders of each kind.
    "neo": {"manager": BACKEND, "callbacks": CALLBACKS, "also": [], "lacks": ["open_clip"],
            "options": {"ckpt_dirs": ["/ckpt"], "controlnet_dir": "/models/ControlNet", "controlnet_dirs": ["/cn"]}},
}  # fmt: skip
PROBE = """
import contextlib, importlib.machinery, json, os, sys, types
os.environ.pop("GRADIO_SERVER_NAME", None)
root, told = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, root)
for name in told.get("lacks", []):
    sys.modules[name] = None  # an import of it raises

def stand(name, **content):
    made = sys.modules[name] = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__dict__.update(content)
    parent, _, last = name.rpartition(".")
    if parent:
        if parent not in sys.modules:
            stand(parent)
        setattr(sys.modules[parent], last, made)

import torch
freed = []
stand(told["manager"], get_torch_device=lambda: torch.device("cuda"), should_use_fp16=lambda device: True,
      free_memory=lambda count, device, keep_loaded=[]: freed.append([count, str(device)]))
stand("modules_forge.shared")
for name in ("sd_models", "scripts", "ui_components", "initialize_util", "processing", *told["also"]):
    stand(f"modules.{name}")
sys.modules["modules.scripts"].scripts_data = []
for name in ("FormRow", "InputAccordion", "ToolButton"):
    setattr(sys.modules["modules.ui_components"], name, object)
sys.modules["modules.sd_models"].model_data = types.SimpleNamespace(sd_model=None)
held = []

class Lock:
    def __enter__(self): held.append("in")
    def __exit__(self, *error): held.append("out")

sys.modules[told["manager"]].unload_all_models = lambda: held.append("unloaded")
stand("modules.call_queue", queue_lock=Lock())
stand("modules.paths", models_path=told.get("models", "/models"), extensions_dir="/extensions")
stand("modules.shared", cmd_opts=types.SimpleNamespace(**told["options"]), state=types.SimpleNamespace(),
      opts=types.SimpleNamespace(data={}), sd_model=types.SimpleNamespace())
registered = []
callbacks = types.SimpleNamespace(**{f"on_{name}": lambda call, name=name: registered.append(name)
                                     for name in told["callbacks"]})
stand("modules.script_callbacks", **vars(callbacks))

from lib_ipadapter.webui import entry
entry.register(sys.modules["modules.script_callbacks"])
host = entry._MODELS.host
with host.room() as short:
    pass
before = len(freed)
reserved = [str(host.reserve(1000)), freed[before:]]
# of the host's denoiser
scope = {"__name__": "modules.sd_samplers_cfg_denoiser", "host": host}
exec("def forward(): return host.reserve(1000)", scope)
reserved += [scope["forward"](), freed[before + 1:]]
del freed[before:]
progress = []
for text in ("loading the image encoder", ""):
    host.say(text)
    progress.append(sys.modules["modules.shared"].state.textinfo)
chosen = None
if "chosen" in told:  # in the page, and not loaded yet
    info = types.SimpleNamespace(filename=told["chosen"], name_for_extra="chosen")
    sys.modules["modules.sd_models"].model_data.forge_loading_parameters = {"checkpoint_info": info}
    chosen = {name: entry._MODELS.describe(name) for name in entry._MODELS.by_fit()}
    chosen = [[name, said["fits"], said["checkpoint"]] for name, said in chosen.items()] + [entry._MODELS.suggested()]
held.clear()
entry._MODELS.unload()
sys.modules["modules.sd_models"].checkpoints_list = {
    name: types.SimpleNamespace(name=name, filename=f"/ckpt/{name}", title=name,
                                name_for_extra=name.rpartition("/")[2].removesuffix(".safetensors"))
    for name in ("zoo.safetensors", "one/model.safetensors", "two/model.safetensors")
}
sys.modules["modules.shared"].opts.data["sd_model_checkpoint"] = "two/model.safetensors [0123456789]"
checkpoints = {name: str(path) for name, path in host.checkpoints().items()}
serves = [host.serves_others()]
os.environ["GRADIO_SERVER_NAME"] = "0.0.0.0"
serves.append(host.serves_others())
from lib_ipadapter.errors import UnsupportedModel
try:
    host.unet()
except UnsupportedModel as error:
    said = str(error)
print(json.dumps({
    "host": type(host).__name__, "progress": progress, "registered": registered, "freed": freed, "short": short,
    "said": said, "loaded": host.loaded_unet(), "name": host.checkpoint_name(), "half": str(host.device_and_dtype()[1]),
    "adapters": [str(folder.path) for folder in host.adapter_folders()],
    "encoders": [str(path) for path in host.encoder_folders()],
    "held": held, "checkpoints": checkpoints, "serves": serves,
    "reserved": reserved, "chosen": chosen, "towers": [str(path) for path in host.text_tower_folders()],
}))
"""


def probed(told: dict[str, Any]) -> dict[str, Any]:
    """What the extension does in a host."""
    command = [sys.executable, "-c", PROBE, str(ROOT), json.dumps(told)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    return {**json.loads(run.stdout.splitlines()[-1]), "told": told}


@pytest.fixture(scope="module", params=sorted(HOSTS))
def host(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each of them."""
    return probed(HOSTS[request.param])


def test_it_loads_and_knows_the_host(host):
    assert host["host"] == "Forge"
    assert sorted(host["registered"]) == sorted(host["told"]["callbacks"])
    assert (host["loaded"], host["name"]) == (None, "")
    assert "no model is loaded" in host["said"]


def test_its_folders_are_searched(host):
    assert "/models/ControlNetPreprocessor" in host["encoders"]
    assert "/cn" in host["adapters"]
    assert "/ckpt" in host["towers"]


def test_room_is_made_by_its_memory_manager(host):
    """At least as much as the largest known encoder takes in half precision (ViT-bigG, 3.7 GB); and the encoder leaves
    afterwards, because the sampler loads what it needs."""
    ((count, device),) = host["freed"]
    assert count >= 3.7e9
    assert (device, host["short"], host["half"]) == ("cuda", True, "torch.float16")


def test_room_beside_the_unet_is_made_before_it_samples(host):
    """And never in a step: the manager would take away the UNet that samples."""
    device, ((count, _),), within, freed = host["reserved"]
    assert (device, count > 1000, within, freed) == ("cuda", True, None, [])


def test_the_model_leaves_between_jobs(host):
    """A job that waits begins as soon as the one before it ends."""
    assert host["held"] == ["in", "unloaded", "out"]


def test_checkpoints_of_one_name_stay_apart_and_the_chosen_one_is_first(host):
    assert list(host["checkpoints"].items()) == [
        ("two/model", "/ckpt/two/model.safetensors"), ("one/model", "/ckpt/one/model.safetensors"),
        ("zoo", "/ckpt/zoo.safetensors"),
    ]  # fmt: skip


def test_a_name_of_the_server_in_the_environment_opens_it_too(host):
    """gradio listens there (its networking.py)."""
    assert host["serves"] == [False, True]


def test_what_takes_time_stands_in_the_pages_progress(host):
    """F19."""
    assert host["progress"] == ["IP-Adapter: loading the image encoder", None]


def test_a_checkpoint_that_is_chosen_and_not_loaded_yet_is_what_adapters_have_to_fit(tmp_path):
    """Forge loads it when a job begins; until then the model at hand is the last job's, or none."""
    (tmp_path / "ipadapter").mkdir()
    for name, width in (("a-other", 32), ("b-fits", 16)):
        tensors = adapter_tensors("base", CONTEXT, [width] * 6)
        write_adapter(tmp_path / "ipadapter" / f"{name}.safetensors", tensors)
    file = tmp_path / "chosen.safetensors"
    save_file({f"model.diffusion_model.{key}": value for key, value in UNet(width=16).state_dict().items()}, file)
    found = probed({**HOSTS["forge"], "models": str(tmp_path), "chosen": str(file)})
    assert found["chosen"] == [["b-fits", True, "chosen"], ["a-other", False, "chosen"], "b-fits"]
