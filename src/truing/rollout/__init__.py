"""Rollouts: samplers that turn prompts into completions, token for token, with the log-probability of each."""
