"""Configuration, the steps of both programs, training, scores and output."""
