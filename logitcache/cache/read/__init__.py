"""Reading of sealed caches."""
