"""The FeatureStore: its folder, its text, one latent of it."""
