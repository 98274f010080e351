"""Shards: cached activations on disk (or behind a URL), from the writer to batches in a seeded order."""

from .folder import FORMAT, VERSION, Batch, Shards, SiteRows

__all__ = ["FORMAT", "VERSION", "Batch", "Shards", "SiteRows"]
