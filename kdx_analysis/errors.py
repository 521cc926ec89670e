"""The exceptions that speak to the user."""

from __future__ import annotations


class KdxError(ValueError):
    """Something that the user can put right: what was wrong, with which value, and what to do.

    The command line prints the message on one line and exits with code 2; every other exception is
    a bug.
    """


class AbsentError(KdxError):
    """The runs hold nothing of the kind that is asked about: no explainer, no VAM, no arms."""
