"""Pipelines: the stages of a system in one YAML file, and runs of them."""
