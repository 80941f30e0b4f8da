"""Stands for Tiled Diffusion: the UNet sees tiles of the latents. Script "Tiles", args: [method, tile's side in
latents, tiles a call]. Methods: multi (round the denoiser, as MultiDiffusion), mixture (round apply_model, as Mixture
of Diffusers), strided (as DemoFusion's global views). Names of variables are those that its functions have."""

from modules import scripts, sd_samplers, shared
from tile_methods.delegate import Delegate


class Tiles(scripts.Script):
    def title(self):
        return "Tiles"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        import gradio as gr

        method = gr.Textbox("", visible=False, label="method")
        return [method, *(gr.Number(x, visible=False, label=f"tile {x}") for x in (8, 2))]

    def process(self, p, method, side, count, *args):
        self.reset()
        if not method:
            return
        self.create = create = sd_samplers.create_sampler

        def create_sampler(name, model):
            sampler = create(name, model)
            delegate, inner = Delegate(p, int(side), int(count)), sampler.model_wrap_cfg.inner_model
            if method == "mixture":
                delegate.original = self.applied = shared.sd_model.apply_model
                shared.sd_model.apply_model = delegate.apply_model
            else:
                delegate.original = inner.forward
                inner.forward = delegate.forward if method == "multi" else delegate.strided
            return sampler

        sd_samplers.create_sampler = create_sampler

    def postprocess(self, p, processed, *args):
        self.reset()

    def reset(self):
        if "create" in vars(self):
            sd_samplers.create_sampler = self.create
            del self.create
        if "applied" in vars(self):
            vars(shared.sd_model).pop("apply_model", None)
            del self.applied
