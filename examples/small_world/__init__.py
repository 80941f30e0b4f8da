"""The small world: images of coloured, textured shapes, and models trained on them from scratch."""
