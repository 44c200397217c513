"""When a new model is worth training, and that only one is trained at a time."""
