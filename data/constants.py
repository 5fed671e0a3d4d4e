"""Constants that data, models and scores share."""

QUANTILE_LEVELS = tuple(k / 20 for k in range(1, 20))  # 0.05 to 0.95: the 90 % interval lies between first and last
ANY_VALUE = (float("-inf"), 0.0)  # support without a bound or steps: smallest value, distance between two values
