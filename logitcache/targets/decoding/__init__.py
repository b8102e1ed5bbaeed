"""Cached logits and features decoded into the parts of a batch."""
