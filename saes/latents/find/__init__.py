"""Latents by what they fire on, promote, or are called."""
