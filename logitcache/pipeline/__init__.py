"""Pipelines: the stages of a system in one YAML file, and runs of them."""

from logitcache.moved import forward

__getattr__ = forward(__name__)
