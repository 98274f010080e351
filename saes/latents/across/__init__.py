"""Many latents at once: a map of directions, partners in another store."""
