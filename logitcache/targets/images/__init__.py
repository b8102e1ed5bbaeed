"""Which rows of a cache belong to which images, and checks that they do."""
