"""The model and its rivals at the controls: rollouts, experts, cloning, play, scores, video."""
