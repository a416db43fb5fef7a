"""Weights that live in the host's memory: what is copied to a device when, and what is read meanwhile."""
