"""Writing of caches: declarations, commits, seals, claims."""
