"""What a run will take, measured on a small part of it before it begins."""

from pluralign.training.planning.plan import Plan, plan

__all__ = ["Plan", "plan"]
