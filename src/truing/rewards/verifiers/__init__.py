"""Verifiers: rewards that are checked, not judged. Each is a page; `verifier.py` says what they have in common."""
