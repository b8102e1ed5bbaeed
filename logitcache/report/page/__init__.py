"""Reports on caches, training runs and pipeline folders, as one page of HTML or Markdown."""
