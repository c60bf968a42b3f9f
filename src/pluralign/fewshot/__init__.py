"""From a few answers of a group to all its others. No command reads these modules yet."""
