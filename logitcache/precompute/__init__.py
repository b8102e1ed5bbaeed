"""Stage 1: computation of a cache."""
