"""Stand for upscaling scripts: "Ultimate SD upscale probe" inpaints the tiles of the picture one after the other, as
Ultimate SD upscale does, "Hidden upscale probe" draws tiles that it cut out itself. Args: [tile's side in pixels]."""

from modules import processing, scripts
from PIL import Image, ImageDraw


def corners(image, side):
    return [(x, y) for y in range(0, image.height, side) for x in range(0, image.width, side)]


class Upscaler:
    def show(self, is_img2img):
        return is_img2img

    def ui(self, is_img2img):
        import gradio as gr

        return [gr.Number(64, visible=False, label="side")]


class Inpainted(Upscaler, scripts.Script):
    def title(self):
        return "Ultimate SD upscale probe"

    def run(self, p, side):
        processing.fix_seed(p)
        image, p.width, p.height = p.init_images[0], side, side
        p.inpaint_full_res, p.inpaint_full_res_padding, p.inpainting_fill, p.mask_blur = True, 0, 1, 0
        mask = Image.new("L", image.size, "black")
        for x, y in corners(image, side):
            ImageDraw.Draw(mask).rectangle((x, y, x + side - 1, y + side - 1), fill="white")
            p.init_images, p.image_mask = [image], mask
            image = processing.process_images(p).images[0]
            ImageDraw.Draw(mask).rectangle((x, y, x + side - 1, y + side - 1), fill="black")
        return processing.Processed(p, [image], p.seed, "")


class Hidden(Upscaler, scripts.Script):
    def title(self):
        return "Hidden upscale probe"

    def run(self, p, side):
        processing.fix_seed(p)
        image, p.width, p.height = p.init_images[0].copy(), side, side
        for x, y in corners(image, side):
            p.init_images = [image.crop((x, y, x + side, y + side))]
            image.paste(processing.process_images(p).images[0], (x, y))
        return processing.Processed(p, [image], p.seed, "; ".join(p.comments))
