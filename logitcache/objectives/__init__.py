"""What a student is asked; functions of its outputs and a TargetBatch."""
