"""What a run learns: the whole model, the language model alone, or the audio encoder alone."""
