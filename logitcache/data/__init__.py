"""Sources of images: listing, classes, digests and decoding."""
