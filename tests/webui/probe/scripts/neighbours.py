"""Stands for extensions that run the model in other ways than the WebUI does. Script "Neighbours", args: [kind].

Each makes the calls of the extension that it is named for, and undoes what they change, so that the picture is the same
as without it: whatever differs, differs in our terms.
"""

import torch
from modules import script_callbacks, scripts, shared
from modules.sd_samplers_cfg_denoiser import catenate_conds

KINDS = ("pag", "sag", "early", "foreign", "permuted", "kohya", "windows", "liked", "sizes")


def conditions(text, image):
    if isinstance(text, dict):
        return {**text, "c_concat": [image]}
    return {"c_crossattn": [text], "c_concat": [image]}


class Scaler(torch.nn.Module):
    """As Kohya Hires.fix's: a block at another size."""

    def __init__(self, scale, block):
        super().__init__()
        self.scale, self.block = scale, block

    def forward(self, x, *args):
        return self.block(torch.nn.functional.interpolate(x, scale_factor=self.scale, mode="bicubic"), *args)


class Neighbours(scripts.Script):
    called = False  # at each step

    def title(self):
        return "Neighbours"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        import gradio as gr

        return [gr.Textbox("", visible=False, label="kind")]

    def before_process(self, p, *args):
        self.postprocess(p, None)  # of a job that failed

    def process(self, p, kind, *args):
        self.kind, self.step, self.model = kind, None, None
        if kind not in KINDS:
            return
        self.called = True
        script_callbacks.on_cfg_denoiser(self.denoiser)  # here, so that ours is called first
        script_callbacks.on_cfg_denoised(self.denoised)
        unet = shared.sd_model.model.diffusion_model
        if kind == "kohya":
            unet.input_blocks[3] = Scaler(0.6, unet.input_blocks[3])
            unet.output_blocks[-4] = Scaler(1.7, unet.output_blocks[-4])
        if kind == "liked":
            self.like(p, unet)

    def like(self, p, unet):
        """As FABRIC: the UNet's forward passes a liked picture with the empty prompt first, past the module's hooks."""
        original, null = unet.forward, p.sd_model.get_learned_conditioning([""])

        def forward(x, timesteps=None, context=None, **kwargs):
            liked = torch.linspace(-1, 1, x[0].numel()).view(1, *x.shape[1:]).expand(len(x), -1, -1, -1)
            seen = original(liked.to(x), timesteps[:1].expand(len(x)), null.expand(len(x), -1, -1))
            p.extra_generation_params.setdefault("Probe liked", f"{float(seen.double().sum()):.12f}")
            return original(x, timesteps, context, **kwargs)

        unet.forward = forward
        self.model = unet

    def denoiser(self, params):
        if self.kind in ("pag", "sag"):
            names = ("x", "sigma", "image_cond", "text_cond", "text_uncond")
            self.step = {name: getattr(params, name).clone() for name in names}
        elif self.kind == "early":
            text = catenate_conds([params.text_uncond, params.text_uncond])
            params.denoiser.inner_model(params.x, params.sigma, cond=conditions(text, params.image_cond))
        elif self.kind == "permuted":
            self.permute(params)
        elif self.kind == "windows":
            self.cut(params.denoiser.inner_model)

    def permute(self, params):
        """As Regional Prompter's latent mode: from picture-major to area-major, in place."""
        batch = params.text_uncond.shape[0]
        areas = params.text_cond.shape[0] // batch
        self.order = [a + b * areas for a in range(areas) for b in range(batch)]
        for name in ("x", "image_cond", "sigma", "text_cond"):
            values = getattr(params, name)
            values[: areas * batch] = values[: areas * batch][self.order]

    def cut(self, model):
        """As AnimateDiff: the inner model's forward gives the UNet windows of three frames, of both sides."""
        if "forward" in vars(model):
            return
        original = model.forward

        def forward(x, sigma, cond):
            frames, out = len(x) // 2, torch.zeros_like(x)
            for first in range(0, frames, 2):
                window = [i % frames for i in range(first, first + 3)]
                rows = window + [i + frames for i in window]
                given = {k: [v[0][rows]] if isinstance(v, list) else v[rows] for k, v in cond.items()}
                out[rows] = original(x[rows], sigma[rows], cond=given)
            return out

        model.forward = forward
        self.model = model

    def denoised(self, params):
        if self.kind == "pag":
            self.guide(params, self.step["text_cond"], 0)
        elif self.kind == "sag":
            self.guide(params, self.step["text_uncond"], len(self.step["text_cond"]))
        elif self.kind == "foreign":
            text = torch.randn_like(params.x)[:, :1, :1, 0].repeat(1, 77, 256)
            params.inner_model(params.x, torch.ones(len(params.x)), cond=conditions(text, params.x))
        elif self.kind == "permuted":
            params.x[self.order] = params.x[: len(self.order)].clone()

    def guide(self, params, text, first):
        """Away from another prediction of the same rows, which is the same one where nothing perturbs it."""
        step = self.step
        again = params.inner_model(
            step["x"], step["sigma"], cond=conditions(catenate_conds([text, text]), step["image_cond"])
        )
        rows = slice(first, first + len(text))
        params.x[rows] += 3 * (params.x[rows] - again[rows])

    def postprocess(self, p, processed, *args):
        if processed is not None and getattr(self, "kind", None) == "sizes":
            for image in list(processed.images):
                if image.size != (p.width, p.height):
                    raise ValueError(f"{image.size} is not the size of the job")
                processed.images.append(image.copy())
                processed.infotexts.append(processed.infotexts[0])
        if self.called:  # the WebUI reads the whole stack for it
            script_callbacks.remove_current_script_callbacks()
        self.called = False
        if getattr(self, "model", None) is not None:
            vars(self.model).pop("forward", None)
        model = getattr(shared.sd_model, "model", None)
        if model is None:  # Forge
            return
        unet = model.diffusion_model
        for blocks in (unet.input_blocks, unet.output_blocks):
            for i, block in enumerate(blocks):
                if isinstance(block, Scaler):
                    blocks[i] = block.block
