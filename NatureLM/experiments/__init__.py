"""Experiments over prompts, scales, species and datasets: plan, run, store, report."""
