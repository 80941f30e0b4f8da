"""Entry of the extension: hands the WebUI its Script. The file's name is what ADetailer's list of
scripts to follow calls it: ip_adapter."""

from pathlib import Path

import lib_ipadapter

_HERE = Path(__file__).resolve().parents[1]
if not Path(lib_ipadapter.__file__).resolve().is_relative_to(_HERE):
    raise ImportError(
        f"another extension already loaded a package named lib_ipadapter from {lib_ipadapter.__file__} "
        "(Forge's builtin sd_forge_ipadapter does). Disable that extension, or this one"
    )

from modules import script_callbacks, scripts  # noqa: E402

from lib_ipadapter.webui import entry  # noqa: E402

lifecycle = entry.register(script_callbacks)


class IPAdapterScript(scripts.Script):
    """Always visible; everything is delegated."""

    def title(self):
        return entry.TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        panel = entry.panel(is_img2img)
        self.infotext_fields = panel.infotext_fields
        self.paste_field_names = panel.paste_field_names
        return panel.components

    def process(self, p, *args):
        lifecycle.process(p, args)

    def process_batch(self, p, *args, **kwargs):
        lifecycle.process_batch(p)

    def postprocess_image_after_composite(self, p, pp, *args):
        lifecycle.finished(p, pp.image)

    def postprocess(self, p, processed, *args):
        lifecycle.postprocess(p, processed)
