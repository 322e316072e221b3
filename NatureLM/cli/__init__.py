"""The commands `naturelm` and `beans`: a file for each family, imported when one is called."""
