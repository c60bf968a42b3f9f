"""Errors that name the place: what was found, where, and what to do about it."""

from __future__ import annotations


class PluralignError(Exception):
    """Base of every error this library raises on purpose.

    `exit_code` is what the command line returns: 0 done, 1 partly done or a condition failed, 2 usage or input.
    """

    exit_code = 2


class InputError(PluralignError):
    """What was given cannot be used. Nothing was written.

    Args:
        found: what was found, in a clause ("the cell holds 3, not text").
        where: the place: file, row, column, user; empty when the message itself names it.
        fix: what to do, in a sentence.
    """

    def __init__(self, found: str, *, where: str = "", fix: str = "") -> None:
        self.found, self.where, self.fix = found, where, fix
        message = f"{where}: {found}" if where else found
        if fix:
            message = f"{message.rstrip('.')}. {fix}"
        super().__init__(message)


class PersonError(PluralignError):
    """One person's data or training is unusable; the others go on. Reported in `TrainResult.skipped`, exit code 1."""

    exit_code = 1

    def __init__(self, user: str, reason: str) -> None:
        self.user, self.reason = user, reason
        super().__init__(f"user {user!r}: {reason}")
