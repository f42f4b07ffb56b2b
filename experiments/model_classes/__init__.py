"""What model classes of transformers can do here: a tiny checkpoint of each goes through every task."""

TOLERANCE = 1e-4  # of log-probabilities and losses beside those of the class's own passes, in nats
