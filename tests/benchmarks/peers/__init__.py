"""Formats in which others keep what teachers said, written here from their descriptions."""
