"""The tasks: reward models, policies, and language-model bases. Each defines loss, batches, init and predictor."""
