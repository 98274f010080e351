"""What every latent does, gathered in one pass: statistics, samples, tokens, weights."""
