"""Starting points for own methods."""
