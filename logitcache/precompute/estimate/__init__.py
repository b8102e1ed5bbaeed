"""Estimates of size, time and fidelity of a cache."""
