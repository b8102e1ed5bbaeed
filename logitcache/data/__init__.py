"""What is shown: sources of images, their names and digests, their pixels."""
