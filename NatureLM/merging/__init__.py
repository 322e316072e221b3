"""Model merging: all arithmetic with α lives here."""
