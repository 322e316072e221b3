"""Labelled recordings: tables, data sets in BEANS-Zero's schema, and the clips that they name."""
