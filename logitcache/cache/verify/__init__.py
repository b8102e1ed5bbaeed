"""Verification of a cache against its own records, and restoring from copies."""

from logitcache.moved import forward

__getattr__ = forward(__name__)
