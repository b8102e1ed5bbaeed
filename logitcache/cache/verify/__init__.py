"""Verification of a cache against its own records, and restoring from copies."""
