"""The commands `naturelm` and `beans`: one file for each verb, imported when it is called."""
