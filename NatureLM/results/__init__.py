"""Result files: every result that is kept on disk is written here."""
