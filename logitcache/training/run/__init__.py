"""Files of a training run: checkpoints, journal, result and trackers."""
