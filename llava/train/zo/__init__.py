"""Zeroth-order training in the Hugging Face Trainer: with the engine all that a MeZO run needs of it."""
