"""A second extension for the tests: does to a generation what others do, and tells what is left on the
model. Script "Probe", args: [command]."""

import copy

from modules import processing, script_callbacks, scripts, shared


class Failure(RuntimeError):
    """Raised in the middle of sampling."""


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def unet():
    return shared.sd_model.model.diffusion_model


class Probe(scripts.Script):
    calls = 0
    inside = 0

    def title(self):
        return "Probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        import gradio as gr

        return [gr.Textbox("", visible=False, label="command")]

    def process(self, p, command, *args):
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

    def postprocess_image(self, p, pp, command, *args):
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


def on_app_started(demo, app):
    @app.get("/probe/hooks")
    def hooks():
        return {"unet": hooks_on(unet()), "inside": Probe.inside}


script_callbacks.on_app_started(on_app_started)
