"""What several tools measure and say: ordinary text, prompts read, replies written, latents in words, latents taken away."""
