"""From requests to answers: audio embeddings, batches, shared prefixes, decoding, label scores."""
