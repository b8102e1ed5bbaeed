"""Class spaces: labels, class maps at read time and the probability outside."""
