"""Everything around the models: configuration, training, scores, files; imports neither models nor data."""
