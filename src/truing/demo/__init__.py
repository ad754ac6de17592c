"""The main job: teach a small real model, from raw human ratings, to write positive film reviews."""
