"""What each latent does: gathered in one pass, kept in a folder, looked up at once."""
