"""Sweeps: many runs of train.py with flags from a space, on Optuna, until the best command line is known."""
