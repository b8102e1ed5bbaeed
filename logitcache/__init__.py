"""Run teachers once, train any number of students from what they said."""
