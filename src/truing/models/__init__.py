"""Models: any transformers decoder as a backbone, with adapters and scalar heads that make it play the four roles."""
