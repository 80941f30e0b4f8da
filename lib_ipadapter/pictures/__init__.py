"""Pixels: pictures loaded from bytes, and preprocessed for an image encoder."""
