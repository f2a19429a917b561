"""Language models: checkpoints in and out, tokenizers, scoring, decoding."""
