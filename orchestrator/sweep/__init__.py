"""Grids of experiments: what they are, how they run on Ray Tune, how they go on."""
