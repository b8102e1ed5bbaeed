"""Stage 2: the loop, evaluation, checkpoints, the journal, the export."""
