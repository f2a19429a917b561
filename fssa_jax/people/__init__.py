"""One person: infer, score, rank, blend, adapt, write, export."""
