"""What is done to a network before it becomes a student, and undone when it is exported."""
