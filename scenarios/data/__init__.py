"""Data sets: what one is (``dataset``), which are packaged and how to load one (``catalogue``)."""
