"""Stage 2 reads: epochs over views, prefetched by a thread, gathered into batches."""
