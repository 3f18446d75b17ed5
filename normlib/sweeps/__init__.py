"""Grids of trainings: what is trained, how, and where it is kept."""
