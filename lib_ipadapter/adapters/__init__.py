"""Adapter files: what they are, and what makes image tokens, K' and V' of them."""
