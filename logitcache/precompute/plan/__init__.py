"""Planning of a run: rows, teachers, activations and what is still to be computed."""
