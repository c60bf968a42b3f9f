"""From a few answers of a group to all its others."""
