"""sd-webui-controlnet builds ControlNets for SD1 as wide as SD1's own; here they are as narrow as the checkpoints."""

import sys

from modules import script_callbacks


def narrow(*args):
    guess = sys.modules.get("scripts.controlnet_model_guess")
    if guess:
        guess.controlnet_default_config["model_channels"] = 32


script_callbacks.on_app_started(narrow)
