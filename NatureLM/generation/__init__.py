"""From prompt embeddings to token ids: splice, batch, greedy, sampling, beams.

Works on any causal language model of transformers; knows neither audio nor files.
"""
