"""Epochs: the order of units, views and rows, and the batches of one pass."""
