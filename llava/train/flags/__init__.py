"""The command line of a run: its flags, which of them go together, and what has to be there before it starts."""
