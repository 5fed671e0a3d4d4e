"""Configuration, the steps of both programs, training, scores and output."""

import models  # noqa: F401  # first: models.pretrained uses utils, and the scores use models.quantiles
