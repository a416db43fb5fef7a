"""A run on record: a few bytes a step, from which the weights of every step follow."""
