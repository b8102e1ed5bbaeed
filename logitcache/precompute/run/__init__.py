"""Computation of a plan, unit by unit."""
