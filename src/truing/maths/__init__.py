"""Pure functions, tensors in and tensors out: what the GridWorld agent and the language model share."""
