"""Augmented views: pure functions of (recipe, key), specified in docs/views.md."""
