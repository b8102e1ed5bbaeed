"""Checks of a cache against its images and teachers, and repair of damaged ones."""
