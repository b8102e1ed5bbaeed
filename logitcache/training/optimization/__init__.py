"""One optimization step: gradients, schedules, and the trained modules."""
