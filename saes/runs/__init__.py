"""A training run's folder: its lock, its log, its checkpoints, and how it ends."""
