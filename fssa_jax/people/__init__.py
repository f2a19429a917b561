"""Using a trained model for one person: infer, score, rank, blend, adapt, generate, export."""
