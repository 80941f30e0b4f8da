"""Bytes on disk: the adapter library, saved embeds, downloads."""
