"""Held-out people: scores, controls, limits, what is written."""
