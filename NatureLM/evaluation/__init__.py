"""Scoring of anybody's answers: files of answers to metrics, intervals and tables."""
