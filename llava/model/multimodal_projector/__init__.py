"""The projector between the vision tower and the language model."""
