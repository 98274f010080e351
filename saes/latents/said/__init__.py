"""What people say of latents, with history."""
