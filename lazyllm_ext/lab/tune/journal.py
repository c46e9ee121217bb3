"""What a search has measured, on disk while it runs, so that one that was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lazyllm_ext.lab.tools.files import os_error_as
from lazyllm_ext.schedule import PruningSchedule

from .trial import Outcome


class Journal:
    """The outcomes of a search, one JSON line each, beside the schedule that it shall give.

    Args:
        path: of the file; made with its first line.
        about: what outcomes depend on beside schedule and prompt: model, dtype, new tokens, ….

    Raises:
        ValueError: it is there and cannot be read.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]):
        self.path, self._about = path, dict(about)
        self._outcomes: dict[str, Outcome] = {}
        self._fault = f"output: cannot keep what is found in {path}"
        with os_error_as(self._fault):
            lines = path.read_bytes().splitlines() if path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
                self._outcomes[entry["key"]] = Outcome(**entry["outcome"])
            except (ValueError, TypeError, KeyError):  # half a line, of a run that was killed
                continue

    @property
    def found(self) -> int:
        """How many outcomes there are."""
        return len(self._outcomes)

    def outcome(
        self, schedule: PruningSchedule, prompt: Tensor, run: Callable[[], Outcome]
    ) -> Outcome:
        """The outcome that an earlier search wrote, or else what `run` gives, which is written.

        Args:
            prompt: its tokens, [n] int64.

        Raises:
            ValueError: it cannot be written.
        """
        what = [self._about, replace(schedule, name=None).to_dict(), prompt.tolist()]
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
        if key not in self._outcomes:
            self._outcomes[key] = run()
            line = json.dumps({"key": key, "outcome": asdict(self._outcomes[key])})
            with os_error_as(self._fault), self.path.open("ab") as file:
                # A line that was cut off ends where this one begins.
                file.write(b"\n" * (file.tell() > 0) + line.encode())
                file.flush()
                os.fsync(file.fileno())
        return self._outcomes[key]

    def remove(self) -> None:
        """The search is finished, and its result written."""
        self.path.unlink(missing_ok=True)
