"""Locations: bytes by key, on a disk, in memory or in an object store."""
