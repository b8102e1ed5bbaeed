"""Formats of other projects for teacher outputs, implemented from their descriptions."""
