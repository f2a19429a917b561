"""Benchmarks with a known limit."""
