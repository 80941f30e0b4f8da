"""Entry of the extension: hands the WebUI its Script. The file's name is what ADetailer's list of
scripts to follow calls it: ip_adapter."""

import sys
from pathlib import Path

from modules import script_callbacks, scripts

# Forge ships modules in a folder of our package's name. Where that was imported first, our package takes its place; it
# finds those modules all the same, and who has imported them already keeps them.
_LOADED = getattr(sys.modules.get("lib_ipadapter"), "__file__", None)
if _LOADED is None or not Path(_LOADED).resolve().is_relative_to(Path(__file__).resolve().parents[1]):
    sys.modules.pop("lib_ipadapter", None)

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
