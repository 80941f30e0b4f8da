"""A second extension for the tests: does to a generation what others do, and tells what is left on the
model. Script "Probe", args: [command]."""

import copy

import torch
from modules import call_queue, img2img, processing, script_callbacks, scripts, sd_unet, shared
from modules.api import api


class Failure(RuntimeError):
    """Raised in the middle of sampling."""


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def unet():
    return shared.sd_model.model.diffusion_model


class Probe(scripts.Script):
    calls = 0
    inside = 0
    steps = 0  # of the denoiser, in all jobs
    comments = ""  # below the pictures of the last job

    def title(self):
        return "Probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        import gradio as gr

        return [gr.Textbox("", visible=False, label="command")]

    def before_process(self, p, command, *args):
        if command.startswith("prompts:"):
            p.prompt = command.partition(":")[2].split("|")

    def process(self, p, command, *args):
        if command == "rows":  # a prompt less than the batch has pictures, as extensions do that rearrange them
            p.get_conds = lambda: ([], [])
        if command == "seeded":
            torch.manual_seed(0)  # the VAE samples by torch's own generator, in the state that the last job left
        if command in ("raise", "interrupt"):
            calls = []

            def hook(module, inputs):
                calls.append(1)
                Probe.inside = hooks_on(unet())
                if len(calls) == 2:
                    handle.remove()
                    if command == "raise":
                        raise Failure("in the middle of sampling")
                    shared.state.interrupt()

            handle = unet().register_forward_pre_hook(hook)

    def copied(self, p, pp):
        """As scripts do that draw again: a shallow copy of the job, without any of the scripts."""
        again = copy.copy(p)
        again.scripts = None
        again.seed, again.n_iter, again.batch_size = 99, 1, 1
        pp.image = processing.process_images(again).images[0]

    def postprocess(self, p, processed, *args):
        Probe.comments = processed.comments

    def postprocess_image(self, p, pp, command, *args):
        if command == "copied":
            self.copied(p, pp)
            return
        self.nested(p, pp, command)

    def nested(self, p, pp, command):
        """As ADetailer: a run inside the run, with chosen scripts by the stem of their file."""
        if not command.startswith("nested"):
            return
        wanted = set(command.split(":")[1].split(","))
        runner = copy.copy(p.scripts)
        runner.alwayson_scripts = [
            s for s in p.scripts.alwayson_scripts if s.filename.rpartition("/")[2][:-3] in wanted
        ]
        runner.callback_map = {}
        inner = processing.StableDiffusionProcessingImg2Img(
            init_images=[pp.image], denoising_strength=0.7, sd_model=p.sd_model, prompt=p.prompt,
            negative_prompt=p.negative_prompt, seed=5, sampler_name=p.sampler_name, steps=3, cfg_scale=5,
            width=p.width, height=p.height, do_not_save_samples=True, do_not_save_grid=True,
        )  # fmt: skip
        inner.scripts = runner
        inner.script_args = copy.deepcopy(p.script_args)
        pp.image = processing.process_images(inner).images[0]


class Area(scripts.Script):
    """Stands for LLuL: goes through all pictures, each of the job's size, and adds one for each."""

    def title(self):
        return "Area"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        import gradio as gr

        return [gr.Checkbox(False, visible=False, label="on")]

    def postprocess(self, p, processed, on, *args):
        for place in range(len(processed.images) if on else 0):
            if place >= processed.index_of_first_image:
                picture = processed.images[place]
                if picture.size != (p.width, p.height):
                    raise ValueError(f"a picture of {picture.size}")
                processed.images.append(picture.copy())
                processed.infotexts.append(processed.infotexts[place])


def on_app_started(demo, app):
    @app.get("/probe/hooks")
    def hooks():
        return {"unet": hooks_on(unet()), "inside": Probe.inside, "steps": Probe.steps, "comments": Probe.comments}

    @app.get("/probe/routes")
    def routes():
        ours = [route for route in app.routes if route.path.startswith("/ip-adapter")]
        return [[method, route.path] for route in ours for method in sorted(route.methods)]

    @app.post("/probe/batch")
    def batch(body: dict):
        """img2img's batch tab on a folder, with one unit."""
        runner = scripts.scripts_img2img
        if not runner.scripts:
            runner.initialize_scripts(True)
        args = api.Api.init_default_script_args(None, runner)
        (ours,) = (s for s in runner.alwayson_scripts if s.title() == "IP-Adapter")
        args[ours.args_from] = body["unit"]
        args[0] = 0
        p = processing.StableDiffusionProcessingImg2Img(
            sd_model=shared.sd_model, prompt="a house", seed=3, sampler_name="Euler", steps=3, cfg_scale=5, width=64,
            height=64, denoising_strength=0.7, do_not_save_samples=True, do_not_save_grid=True,
        )  # fmt: skip
        p.is_api = True  # first: else the panel's seed comes in the place of ours
        p.scripts, p.script_args = runner, tuple(args)
        with call_queue.queue_lock:
            shared.state.begin("probe")
            torch.manual_seed(0)  # the first picture is encoded with noise that the WebUI does not seed
            done = img2img.process_batch(p, body["folder"], "", "", args)
            shared.state.end()
        return {"images": [api.encode_pil_to_base64(image).decode() for image in done.images]}

    @app.post("/probe/upscale")
    def upscale(body: dict):
        """The button "upscale" under txt2img's gallery: hires fix of a finished picture."""
        runner = scripts.scripts_txt2img
        if not runner.scripts:
            runner.initialize_scripts(False)
        args = api.Api.init_default_script_args(None, runner)
        (ours,) = (s for s in runner.alwayson_scripts if s.title() == "IP-Adapter")
        args[ours.args_from], args[0] = body["units"], 0
        p = processing.StableDiffusionProcessingTxt2Img(
            sd_model=shared.sd_model, prompt="a house", seed=3, sampler_name="Euler", steps=3, cfg_scale=5, width=64,
            height=64, do_not_save_samples=True, do_not_save_grid=True, **body["hires"],
        )  # fmt: skip
        p.is_api, p.scripts, p.script_args = True, runner, tuple(args)
        p.txt2img_upscale, p.firstpass_image = True, api.decode_base64_to_image(body["image"]).convert("RGB")
        with call_queue.queue_lock:
            shared.state.begin("probe")
            torch.manual_seed(0)
            done = processing.process_images(p)
            shared.state.end()
        return {"image": api.encode_pil_to_base64(done.images[0]).decode()}


class CompiledUnet(sd_unet.SdUnet):
    """Stands for a UNet that runs elsewhere (TensorRT): no module of it can be hooked."""

    def forward(self, x, timesteps, context, *args, **kwargs):
        return x


class CompiledOption(sd_unet.SdUnetOption):
    label = "[probe] compiled"
    model_name = "none"

    def create_unet(self):
        return CompiledUnet()


def count(params):
    Probe.steps += 1


script_callbacks.on_app_started(on_app_started)
script_callbacks.on_cfg_denoiser(count)
script_callbacks.on_list_unets(lambda found: found.append(CompiledOption()))
