"""The parts of a model in training: how it is put together, what of it is trained, and what is saved."""
