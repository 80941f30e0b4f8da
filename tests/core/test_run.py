"""One job's Run around ``p.sample``: the hooks come and go, and an error in a step stops the job on every host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import contextlib, gc, sys, types, weakref
sys.path.insert(0, {root!r})

def module(name, **content):
    made = sys.modules[f"modules.{{name}}"] = types.ModuleType(f"modules.{{name}}")
    vars(made).update(content)
    setattr(sys.modules["modules"], name, made)

sys.modules["modules"] = types.ModuleType("modules")
for name in ("devices", "lowvram", "sd_models", "sd_unet", "paths", "shared"):
    module(name)
module("call_queue", queue_lock=contextlib.nullcontext())
import torch
from torch import nn
from lib_ipadapter.attention.session import ImagePrompt, Session, Timing
from lib_ipadapter.attention.traced import TracedRows
from lib_ipadapter.errors import BrokenControl
from lib_ipadapter.webui.following import latent_tiles
from lib_ipadapter.webui.hosts.base import StepPlan
from lib_ipadapter.webui.lifecycle import RUN, Lifecycle
from lib_ipadapter.webui.script import Run
from tests.tiny import FakeAdapter, UNet

unet = UNet()
adapter = FakeAdapter(unet)
context = adapter.spec.context
tokens = torch.randn(2, 4, context)

class Host:
    unet = staticmethod(lambda: unet)
    check = staticmethod(lambda p, sampling=True: None)
    rows = staticmethod(TracedRows)
    plan = staticmethod(lambda p, params: StepPlan((0,) * params.text_cond.shape[0] + (1,), lambda needed: []))
    coming = staticmethod(lambda: None)
    in_refiner = staticmethod(lambda p: False)
    surface = staticmethod(lambda error: told.append(type(error).__name__))
    comment = staticmethod(lambda p, text: None)

class Inner(nn.Module):
    def forward(self, x, sigma, cond=None):
        return unet(x, sigma, cond["c_crossattn"][0])

class NoModule:  # of another host
    def __call__(self, x, sigma, cond=None):
        return unet(x, sigma, cond["c_crossattn"][0])

class Denoiser:
    step, total_steps = 0, 3
    def __init__(self, p, inner):
        self.p, self.inner = p, inner
    @property
    def inner_model(self):
        return self.inner

class Job:
    iteration, batch_size, n_iter, is_hr_pass, width, height = 0, 1, 1, False, 64, 64
    all_prompts = prompts = [""]
    extra_generation_params = {{}}
    def get_conds(self):
        return types.SimpleNamespace(batch=[[None]]), None
    def sample(self):
        latents, text = torch.randn(2, 4, width), torch.randn(2, 3, context)
        x = torch.zeros(2, 4, 8, 8)
        params = types.SimpleNamespace(denoiser=denoiser, x=x, text_cond=text[:1], text_uncond=text[1:], sigma=None)
        if self.broken == "step":
            params.text_cond = None  # whatever a step may stumble over
        life.on_cfg_denoiser(params)
        shown.append(hooks())
        if self.broken == "host":
            raise MemoryError
        denoiser.inner(latents, None, {{"c_crossattn": [text]}})
        life.on_cfg_denoised(params)
        return "sampled"

width = 16
hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())
life = Lifecycle(types.SimpleNamespace(host=Host()))
models = types.SimpleNamespace(host=Host())
for inner in (Inner(), NoModule()):
    for broken in ("", "step", "host"):
        p, shown, told = Job(), [], []
        p.broken = broken
        denoiser = Denoiser(p, inner)
        run = Run(p, models)
        run.session = Session([ImagePrompt(adapter, tokens, torch.ones(4))], latent_tiles, run._rows)
        run.stopped = life.left
        setattr(p, RUN, run)
        life.process_batch(p)
        try:
            ended = p.sample()
        except Exception as error:
            ended = type(error).__name__
            assert told == [ended]  # so that the page shows it
        print(type(inner).__name__, broken or "not", ended, shown[0] > 0, hooks(), "sample" in vars(p), end=" ")
        gone = weakref.ref(p)
        del p, run, denoiser  # after an error no callback follows in which we could forget the job
        gc.collect()
        print(gone() is None)

class Beside:
    file = "net.safetensors"
    attach, pause, resume, detach = (
        lambda self, *given, name=name: order.append(name) for name in ("attach", "pause", "resume", "detach")
    )
    def __init__(self, *added):
        self.added = added
    def residuals(self, call, *given):
        return self.added

for acts in (True, False):
    p, shown, order = Job(), [], []
    p.broken = False
    denoiser = Denoiser(p, Inner())
    run = Run(p, models)
    beside = Beside(*[torch.zeros(1, 4, 16)] * 9 if acts else ())
    prompt = ImagePrompt(adapter, tokens, torch.ones(4), beside=beside)
    run.session = Session([prompt], lambda whole, tile: [(0.0, 0.0, 1.0, 1.0)], run._rows)
    run._units = [(0, None, prompt)]
    setattr(p, RUN, run)
    life.process_batch(p)
    p.sample()
    print(*run.never_acted())

class Unreadable(Beside):
    def attach(self, *given):
        raise BrokenControl(self.file, "cut off")

p, shown, order = Job(), [], []
denoiser = Denoiser(p, Inner())
run = Run(p, models)
prompts = [ImagePrompt(adapter, tokens, torch.ones(4), beside=beside) for beside in (None, Unreadable())]
run.session = Session(prompts, rows=run._rows)
run._units = [(i, types.SimpleNamespace(model=""), prompt) for i, prompt in enumerate(prompts)]
setattr(p, RUN, run)
life.process_batch(p)
try:
    p.sample()
except BrokenControl as error:
    print(error)

class Hires(Job):
    broken, enable_hr, truncate_x, truncate_y = "", True, 0, 0
    def sample(self):
        Job.sample(self)
        self.sample_hr_pass(None, None)
    def sample_hr_pass(self, samples, decoded):
        order.append("the host fills the device")
        self.is_hr_pass = True
        Job.sample(self)

for first in (1.0, 0.0):
    p, shown, order = Hires(), [], []
    denoiser = Denoiser(p, Inner())
    denoiser.total_steps = 1
    run = Run(p, models)
    prompt = ImagePrompt(adapter, tokens, torch.ones(4), timing=Timing(first=first), beside=Beside())
    run.session = Session([prompt], lambda whole, tile: [(0.0, 0.0, 1.0, 1.0)], run._rows)
    setattr(p, RUN, run)
    life.process_batch(p)
    p.sample()
    print(*order, sep=", ")
"""


def test_the_hooks_go_and_an_error_stops_the_job():
    run = subprocess.run([sys.executable, "-c", PROBE.format(root=str(ROOT))], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    *shown, acted, silent, unreadable, both, only_hires = run.stdout.splitlines()
    assert both == "attach, pause, resume, the host fills the device, pause, detach"
    assert only_hires == "attach, resume, the host fills the device, pause, detach"
    assert acted == ""
    assert unreadable == "IP-Adapter unit 2: net.safetensors: cut off"
    assert silent.startswith("IP-Adapter unit 1: its ControlNet acted in no step")
    lines = [line.split() for line in shown]
    assert len(lines) == 6
    for inner, broken, ended, shown, left, replaced, gone in lines:
        assert (ended == "sampled") is (broken == "not"), (inner, broken, ended)
        assert (shown, left, replaced, gone) == ("True", "0", "False", "True"), (inner, broken)
