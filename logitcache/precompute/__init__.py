"""Stage 1: what is missing, computing it, sealing it."""
