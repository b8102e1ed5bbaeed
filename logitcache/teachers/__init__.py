"""Teachers; used by stage 1 only, and never imported by training."""
