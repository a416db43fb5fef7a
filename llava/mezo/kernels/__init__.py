"""The arithmetic of noise, perturbed weights and updates: a file for each way of computing, all with the same bits."""
