"""LLaVA on each language model that is supported, a short file each."""
