"""Benchmarks with a known Bayes limit."""
