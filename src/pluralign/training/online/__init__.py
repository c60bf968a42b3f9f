"""Comparisons that people's own policies sample, in phases, while they are trained."""
