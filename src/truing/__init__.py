"""Truing: align language models, and tell the truth about whether it worked."""

__version__ = "0.1.0"
