"""Script "Latents", args: [file]. Writes a batch's latents there, as they are before they are decoded."""

import torch
from modules import scripts


class Latents(scripts.Script):
    def title(self):
        return "Latents"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        import gradio as gr

        return [gr.Textbox("", visible=False, label="file")]

    def post_sample(self, p, ps, file):
        if file:
            torch.save(ps.samples.detach().double().cpu(), file)
