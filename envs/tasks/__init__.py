"""Environments made for this package: hidden velocities and memory tasks."""
