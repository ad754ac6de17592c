"""Training state, checkpoints and the run folder."""
