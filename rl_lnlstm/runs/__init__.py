"""Run directories, checkpoints, loggers and plots: everything that a training run writes to disk."""
