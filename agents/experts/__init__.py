"""Experts: search, scripted players and stable-baselines3 training."""
