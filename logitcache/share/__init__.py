"""Sharing of sealed caches: parts, unions, comparison, removal of garbage, transfer."""
