"""Teachers; used to compute and check caches, and never imported by training."""
