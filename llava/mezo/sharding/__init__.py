"""Weights in shards: each rank holds, perturbs and updates its part of every weight."""
