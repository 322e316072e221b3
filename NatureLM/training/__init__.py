"""Training: data, objectives, the loop, checkpoints and logs."""
