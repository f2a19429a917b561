"""Flax modules: encoders, reward models, the hypernetwork, decoders."""
