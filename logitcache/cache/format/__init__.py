"""Documents and arrays of the cache format; ``docs/format.md`` is normative."""
