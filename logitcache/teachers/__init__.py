"""Who answers: stage 1 only; nothing that trains a student imports this package."""
