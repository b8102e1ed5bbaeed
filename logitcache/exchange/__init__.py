"""Import and export of teacher outputs in the formats of other programs."""
