"""Constants that data, models and scores share."""

QUANTILE_LEVELS = tuple(k / 20 for k in range(1, 20))
"""Quantile levels, 0.05 to 0.95: the 90 % interval lies between the first and the last."""
ANY_VALUE = (float("-inf"), 0.0)
"""The support of a field without a smallest value or steps: smallest value, distance between two values."""
