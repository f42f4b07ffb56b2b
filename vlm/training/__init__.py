"""One way to train: objectives, mixtures and the trainer."""
