"""The place of the resamplers of LLaVA-NeXT, which are not supported here."""
