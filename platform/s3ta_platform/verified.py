"""What a check of stored results found, and the results that it looks at. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass, field

from s3ta_platform.evaluation_record import EvaluationRecord
from s3ta_platform.storage import Storage

Tick = Callable[[], None]
"""Called once per file that was looked at."""


@dataclass(kw_only=True)
class Check:
    """One line of the outcome."""

    name: str
    words: str = ""
    """What was looked at."""
    doubts: list[str] = field(default_factory=list)
    """What should not be, where, and the remedy."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing and no doubt."""


@dataclass(frozen=True, kw_only=True)
class Root:
    """A results root as it was when the checks began."""

    storage: Storage
    stored: frozenset[str]
    """Names of the files with rows."""
    records: list[EvaluationRecord]
    """Those that can be read."""
