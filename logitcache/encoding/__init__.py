"""Encodings of logits and features as small arrays; no input or output."""
