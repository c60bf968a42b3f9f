"""Preferences: who preferred what. Reading, checking and splitting tables; no torch."""

from pluralign.preferences.check import CheckReport, check_preferences
from pluralign.preferences.keys import data_hash, people_hashes, text_key
from pluralign.preferences.loading import load_preferences
from pluralign.preferences.people import folder_name, named_people, shown
from pluralign.preferences.prompts import read_prompts
from pluralign.preferences.schema import ALL, Message, Place, Preference, Preferences, Problem, Text
from pluralign.preferences.splits import split_preferences

__all__ = [
    "ALL",
    "CheckReport",
    "Message",
    "Place",
    "Preference",
    "Preferences",
    "Problem",
    "Text",
    "check_preferences",
    "data_hash",
    "folder_name",
    "load_preferences",
    "named_people",
    "people_hashes",
    "read_prompts",
    "shown",
    "split_preferences",
    "text_key",
]
