"""Searching for good options with Ray Tune and Optuna; the command `tune`."""
