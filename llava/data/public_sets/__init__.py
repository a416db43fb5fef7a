"""The public sets, a file each: how a set is read, and what is asked about it."""
