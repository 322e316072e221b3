"""From answers to data that can be published: events, clips for review, verdicts, thresholds."""
