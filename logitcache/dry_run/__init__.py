"""Dry runs of pipelines: every stage is resolved and its cost computed, and nothing is run."""
