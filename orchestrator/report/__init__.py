"""The report: which method to take at which price, from finished runs, as one file."""
