"""Zeroth-order training in the Hugging Face Trainer: what travels to LLaVA-NeXT together with the engine."""
