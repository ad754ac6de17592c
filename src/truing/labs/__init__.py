"""The classic experiments: each ends in a figure, a table and a stated expectation, and says whether it held."""
