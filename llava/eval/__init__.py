"""Evaluation: a model answers questions, and its answers are compared with the right ones."""
