"""The claims as named runs, their results as data, their report."""
