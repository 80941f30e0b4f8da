"""The small world: pictures of coloured, textured shapes, and models trained on them from nothing."""
