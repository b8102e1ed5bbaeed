"""timm's own train.py, unpatched, with images and a teacher from a cache."""
