"""What scripts/record_outputs.py runs: the commands, their inputs, and two programs."""
