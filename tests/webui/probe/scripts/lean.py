"""Leaves out of the Settings tab what is none of this extension's, where the environment's PROBE_LEAN is set: the page
is built, and brought up to date at each event, in time that grows with what is on it."""

import os

from modules import script_callbacks, shared


def hide():
    for name, info in shared.opts.data_labels.items():
        if not name.startswith("ipadapter_"):
            info.section = (None, "Hidden options")  # the WebUI's own way to have no component for an option


if os.environ.get("PROBE_LEAN"):
    script_callbacks.on_before_ui(hide)
