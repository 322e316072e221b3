"""NatureLM-audio: ask questions of animal sound."""

__version__ = "0.1.0"
