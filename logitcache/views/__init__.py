"""How an image is shown: pure functions of (recipe, key), written down in docs/views.md."""
