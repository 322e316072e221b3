"""Trains the embedded model from nothing: text, encoder, audio."""
