"""Sparse autoencoders + caches (+ the model, at most once) -> numbers and pictures."""
