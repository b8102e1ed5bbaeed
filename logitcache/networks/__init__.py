"""Networks of teachers and students: building, RedNet, digests of weights."""
