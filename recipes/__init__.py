"""Recipes of artefacts that the package ships."""
