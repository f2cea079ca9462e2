"""Runs and sweeps as jobs on a cluster."""
