"""Who says which response is better: the world's judge, a function, a reward model, a judge behind HTTP, people."""

from pluralign.annotators.choosing import annotator_of
from pluralign.annotators.protocol import Annotator, AnnotatorError, Request, Verdict

__all__ = ["Annotator", "AnnotatorError", "Request", "Verdict", "annotator_of"]
