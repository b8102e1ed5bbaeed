"""The Zarr store: what it is made of, how it is written, how it is read."""
