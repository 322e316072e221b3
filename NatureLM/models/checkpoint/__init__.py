"""Files of a model: finding, reading, checking, writing and converting checkpoints."""
