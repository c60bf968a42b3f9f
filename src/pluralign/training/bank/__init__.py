"""Many people at once: everybody's optimiser step is their own, and the forwards are everybody's."""

from pluralign.training.bank.loop import BankPopulation

__all__ = ["BankPopulation"]
