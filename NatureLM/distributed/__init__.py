"""Many machines: recordings go through Ray Data, and one writer stores what comes back."""
