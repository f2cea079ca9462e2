"""Who has which data: data sets, partitions, populations, and the store of frozen features.

Reading order: ``data/dataset.py``, ``partition.py``, ``population.py``, ``features.py``.
"""
