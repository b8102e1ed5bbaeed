"""Targets for training: epochs over views, read ahead and gathered into batches."""
