"""Evaluation on held-out people: scores, controls, limits, generated responses."""
