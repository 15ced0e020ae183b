"""What a check of `tuwen doctor` found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check; a finding without advice is in order."""

    subject: str
    found: str
    advice: str = ""
    serious: bool = True
    """Whether jobs cannot run until the advice is followed."""

    @property
    def fine(self) -> bool:
        """Whether nothing has to be done."""
        return not self.advice
