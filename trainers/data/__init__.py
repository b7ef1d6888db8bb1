"""Data sets: found, decoded once, loaded as tensors; subsets and the order of samples.

Nothing is imported here: a plan asks what a data set is (`info`, `catalogue`) and takes no tensors,
and torch takes two seconds.
"""
