"""Image prompts by IP-Adapter (arXiv 2308.06721), as plain torch: nothing here needs a WebUI.

Only ``lib_ipadapter.webui`` and ``scripts/`` may import the WebUI's ``modules``, gradio or fastapi.
"""

from pkgutil import extend_path

# Forge ships modules of its own in a folder of this name. They stay importable beside ours (docs/architecture.md).
__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"
