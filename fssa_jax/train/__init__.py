"""One step, one loop, devices, checkpoints."""
