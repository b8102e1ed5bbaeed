"""Teachers run on a sample of the images before a cache is written."""
