"""Cache -> sparse autoencoders: torch, and no language model in memory."""
