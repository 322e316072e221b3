"""Questionnaires: many questions about every window, and a typed column for each."""
