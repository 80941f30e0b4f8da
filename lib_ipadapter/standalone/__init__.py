"""Without a WebUI: an ldm checkpoint sampled by DDIM, with image prompts by the same Session."""

from .host import Standalone

__all__ = ["Standalone"]
