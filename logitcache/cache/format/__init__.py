"""Documents and arrays of the cache format; ``docs/format.md`` is normative."""

from logitcache.moved import forward

__getattr__ = forward(__name__)
