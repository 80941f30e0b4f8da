"""Stands for Tiled Diffusion: the UNet sees tiles of the latents. Script "Tiles", args: [method, tile's side in latents,
tiles a call]. Methods: multi (round the denoiser, as MultiDiffusion), mixture (round apply_model, as Mixture of
Diffusers), strided (as DemoFusion's global views). Names of variables are those that its functions have."""

import torch
from modules import scripts, sd_samplers, shared


class BBox:
    def __init__(self, x, y, w, h):
        self.x, self.y, self.w, self.h = x, y, w, h
        self.slicer = slice(None), slice(None), slice(y, y + h), slice(x, x + w)


class Delegate:
    def __init__(self, p, side, count):
        self.w, self.h = p.width // 8, p.height // 8
        steps = lambda whole: sorted({*range(0, whole - side, side - 2), whole - side})  # noqa: E731
        boxes = [BBox(x, y, side, side) for y in steps(self.h) for x in steps(self.w)]
        self.batched_bboxes = [boxes[i : i + count] for i in range(0, len(boxes), count)]

    def forward(self, x_in, sigma_in, cond):
        def repeat_func(x_tile, bboxes):
            many = {key: self.repeat(value, len(bboxes)) for key, value in cond.items()}
            return self.original(x_tile, sigma_in.repeat(len(bboxes)), cond=many)

        return self.sample_one_step(x_in, repeat_func)

    def repeat(self, value, n):
        if isinstance(value, list):
            return [self.repeat(item, n) for item in value]
        return value.repeat(n, *[1] * (value.dim() - 1))

    def sample_one_step(self, x_in, repeat_func):
        total, weights = torch.zeros_like(x_in), torch.zeros_like(x_in)
        for bboxes in self.batched_bboxes:
            x_tile_out = repeat_func(torch.cat([x_in[bbox.slicer] for bbox in bboxes]), bboxes)
            for bbox, out in zip(bboxes, x_tile_out.chunk(len(bboxes))):
                total[bbox.slicer] += out
                weights[bbox.slicer] += 1
        return total / weights

    def apply_model(self, x_in, t_in, cond):
        total, weights = torch.zeros_like(x_in), torch.zeros_like(x_in)
        for bboxes in self.batched_bboxes:
            tiles = []
            for bbox in bboxes:
                tiles.append(x_in[bbox.slicer])
            many = {key: self.repeat(value, len(bboxes)) for key, value in cond.items()}
            x_tile_out = self.original(torch.cat(tiles), t_in.repeat(len(bboxes)), many)
            for bbox, out in zip(bboxes, x_tile_out.chunk(len(bboxes))):
                total[bbox.slicer] += out
                weights[bbox.slicer] += 1
        return total / weights

    def strided(self, x_in, sigma, cond):
        def repeat_func(x_tile, bboxes):
            return self.original(x_tile, sigma, cond=cond)

        bboxes, out = [(0, 0)], torch.zeros_like(x_in)
        out[:, :, ::2, ::2] = repeat_func(x_in[:, :, ::2, ::2], bboxes)
        return out


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
