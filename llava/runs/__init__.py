"""The folder of a run as data: training writes it, reports and pictures are made of it."""
