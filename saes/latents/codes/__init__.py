"""Every activation that was kept, by token and by latent, and what follows from them exactly."""
