"""Descriptions of a cache: contents, surveys of outputs, sheets of images."""
