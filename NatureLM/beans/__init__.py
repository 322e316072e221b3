"""BEANS-Zero, the zero-shot benchmark of animal sound."""
