"""Tools that derive settings from a cache."""
