"""Measurements whose output is in ``docs/``; never run as tests."""
