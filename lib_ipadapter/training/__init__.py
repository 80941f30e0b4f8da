"""Training an adapter over a frozen base model (arXiv 2308.06721, 3.2)."""
