"""Flax modules: encoders, rewards, the hypernetwork, decoders."""
