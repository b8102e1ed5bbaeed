"""Samplers of views: which cached view of an image a student is shown next to the original."""
