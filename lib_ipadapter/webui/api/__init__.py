"""The routes under /ip-adapter: what they do, who may call them, how much they read."""

from .routes import register

__all__ = ["register"]
