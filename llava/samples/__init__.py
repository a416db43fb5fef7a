"""From a file of records to a batch: turns, pictures, token ids, labels, and the order of it all."""
