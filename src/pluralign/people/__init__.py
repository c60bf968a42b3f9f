"""The people of a run's folder: listed, shown, removed."""
