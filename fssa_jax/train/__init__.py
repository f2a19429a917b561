"""The training step, the loop, devices, checkpoints."""
