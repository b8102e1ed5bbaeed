"""Logits to small arrays and back: pure maths, no input or output."""
