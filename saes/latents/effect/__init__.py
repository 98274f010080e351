"""What the model loses without a latent, on the tokens shown."""
