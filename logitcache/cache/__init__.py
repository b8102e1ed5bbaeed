"""The Zarr store of a cache: its format, and how it is written and read."""
