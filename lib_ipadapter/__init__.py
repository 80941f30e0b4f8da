"""Image prompts by IP-Adapter (arXiv 2308.06721), as plain torch: nothing here needs a WebUI.

Only ``lib_ipadapter.webui`` and ``scripts/`` may import the WebUI's ``modules``, gradio or fastapi.
"""

__version__ = "0.1.0"
