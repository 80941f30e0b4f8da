"""The image branch on a UNet: layers, hooks, rows, regions, and the session that owns them."""
