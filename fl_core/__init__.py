"""Federated learning on frozen backbones as pure functions. Start reading at ``round.py``."""
