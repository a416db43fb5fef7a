"""The small world of playground/: drawn data sets, and the tiny checkpoint that is pre-trained on drawings."""
