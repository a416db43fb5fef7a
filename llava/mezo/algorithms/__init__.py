"""What a step can be: an estimator and a rule, a file each."""
