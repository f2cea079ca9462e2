"""Commands that show data sets and who holds what of them."""
