"""Windows as vectors: build an index, read it, find what sounds alike."""
