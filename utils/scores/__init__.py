"""Scores of ensembles, their sums over windows, and paired comparisons."""
