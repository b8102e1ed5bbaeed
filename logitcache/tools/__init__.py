"""What reads a cache and makes something small of it: weights of teachers, say."""
