"""Several methods and seeds beside their references, and which is best."""
