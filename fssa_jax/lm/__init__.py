"""Language models: reading and writing checkpoints, tokenizers, scoring, decoding."""
