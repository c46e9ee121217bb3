"""A schedule for one's own model and prompts, without labels and without training.

    lazyllm-ext tune MODEL --prompts prompts.jsonl --bound 0.05 --output schedule.json

docs/tuning.md says how it is found. Nothing in the package imports this, but the command line.
"""

from .candidates import Candidate
from .journal import Journal
from .prompts import read_prompts
from .report import to_markdown, write_report, write_schedule
from .trial import Outcome
from .tuner import Trial, Tuning, Wish, tune

__all__ = [
    "Candidate",
    "Journal",
    "Outcome",
    "Trial",
    "Tuning",
    "Wish",
    "read_prompts",
    "to_markdown",
    "tune",
    "write_report",
    "write_schedule",
]
