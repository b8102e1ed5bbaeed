"""Training: loop, evaluation, checkpoints, journal and export."""
