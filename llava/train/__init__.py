"""Training: the entry points, the trainer of regular runs, and names that other code imports from LLaVA-NeXT."""
