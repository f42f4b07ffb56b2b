"""Agents: rollouts, experts, behaviour cloning, DAgger, PPO; play, record, score, export."""
