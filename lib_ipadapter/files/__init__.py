"""Bytes on disk: tensors in files of any maker, the list of adapters, saved embeds, downloads."""
