"""gradio's File component with values that can be copied and pickled."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .uploads import as_uploads


class Files(gr.File):
    """The page sees a File; the script gets Uploads."""

    def get_block_name(self) -> str:
        """gradio chooses the page's part by this name."""
        return "file"

    def preprocess(self, *args: Any, **kwargs: Any) -> Any:
        """Uploads, or None."""
        return as_uploads(super().preprocess(*args, **kwargs))
