"""What an experiment trains: reward models, policies, bases; each a loss, a draw, a start, a predictor."""
