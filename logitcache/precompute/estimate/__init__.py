"""Estimates of size, time and fidelity of a cache."""

from logitcache.moved import forward

__getattr__ = forward(__name__)
