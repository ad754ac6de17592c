"""Environments with known optima, registered with Gymnasium."""
