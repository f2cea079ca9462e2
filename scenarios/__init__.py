"""Who has which data: data sets, partitions, populations, and the store of frozen features.

Reading order: ``data/dataset.py``, ``partitions/``, ``population.py``, ``features.py``.
"""
