"""Referring segmentation: data sets, objectives, metrics and evaluation."""
