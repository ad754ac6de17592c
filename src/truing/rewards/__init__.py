"""Rewards: what a completion is worth, as records that say how they came to be."""
