"""Students: networks, surgeries before training, and conversion for export."""
