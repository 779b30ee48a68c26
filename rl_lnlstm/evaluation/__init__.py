"""Evaluating policies over whole episodes: scores, recordings and their statistics."""
