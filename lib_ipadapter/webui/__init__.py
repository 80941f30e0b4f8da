"""What needs the WebUI: its ``modules``, gradio and fastapi are imported in this room only."""
