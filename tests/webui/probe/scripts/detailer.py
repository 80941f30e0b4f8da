"""Stands for ADetailer: draws boxes of each finished picture anew, by jobs inside the job, in its order of calls.

Script "Detailer", args: [names of scripts, comma-separated; boxes "x,y,right,bottom" in pixels, ";" between; a
checkpoint or ""; whether to draw over the init image and not over the result].
"""

import contextlib
from copy import copy
from pathlib import Path

from modules import processing, scripts
from PIL import Image, ImageDraw


class Detailer(scripts.Script):
    def title(self):
        return "Detailer"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        import gradio as gr

        names, boxes, checkpoint = (gr.Textbox("", visible=False, label=x) for x in ("names", "boxes", "model"))
        return [names, boxes, checkpoint, gr.Checkbox(False, visible=False, label="over the init image")]

    def chosen(self, p, names):
        """The runner with those scripts alone whose file has one of these names, and arguments of its own."""
        names = {name.strip() for name in names.split(",")} | {"soft_inpainting", "hypertile_script"}
        runner = copy(p.scripts)
        runner.alwayson_scripts = [s for s in runner.alwayson_scripts if Path(s.filename).stem in names]
        return runner, type(p.script_args)([copy(arg) for arg in p.script_args])

    def job(self, p, image, names, checkpoint):
        job = processing.StableDiffusionProcessingImg2Img(
            init_images=[image], resize_mode=0, denoising_strength=0.7, mask=None, mask_blur=0, inpainting_fill=1,
            inpaint_full_res=True, inpaint_full_res_padding=4, sd_model=p.sd_model, prompt=p.prompt,
            negative_prompt=p.negative_prompt, seed=p.all_seeds[p.iteration * p.batch_size + p.batch_index],
            sampler_name=p.sampler_name, batch_size=1, n_iter=1, steps=p.steps, cfg_scale=p.cfg_scale,
            width=p.width, height=p.height, extra_generation_params=dict(p.extra_generation_params),
            do_not_save_samples=True, do_not_save_grid=True,
            override_settings={"sd_model_checkpoint": checkpoint} if checkpoint else {},
        )  # fmt: skip
        job.cached_c, job.cached_uc = [None, None], [None, None]
        job.scripts, job.script_args = self.chosen(p, names)
        job._ad_disabled = job._ad_inner = True
        return job

    def postprocess_image(self, p, pp, names, boxes, checkpoint, over_init, *args):
        if getattr(p, "_ad_disabled", False) or not boxes:
            return
        if p.batch_index == 0:
            p.scripts.postprocess(copy(p), processing.Processed(p, [], p.seed, ""))
        first = self.job(p, p.init_images[0] if over_init else pp.image, names, checkpoint)
        again = copy(first)
        for box in boxes.split(";"):
            again.image_mask = Image.new("L", again.init_images[0].size)
            left, top, right, bottom = map(int, box.split(","))
            ImageDraw.Draw(again.image_mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
            with contextlib.closing(again):
                pp.image = processing.process_images(again).images[0]
            again = copy(first)
            again.init_images = [pp.image]
        if p.batch_index == p.batch_size - 1:
            again = copy(p)
            p.scripts.before_process(again)
            p.scripts.process(again)
