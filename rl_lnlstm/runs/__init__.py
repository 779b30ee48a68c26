"""What a training run leaves on disk: the run directory, checkpoints and the progress display."""
