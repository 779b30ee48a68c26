"""Collectors: where the environments of a run are, and how rollouts come from there to PPO."""
