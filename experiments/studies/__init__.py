"""Studies: the paper's questions at a size that two cores can answer."""
