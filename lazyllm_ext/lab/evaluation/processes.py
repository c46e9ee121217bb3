"""Several processes that share one evaluation, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

# One process may have long items left when another is done.
_LONGEST_WAIT = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work."""

    rank: int = 0  # its number; 0 makes the report
    count: int = 1
    local_rank: int = 0  # its number on this machine

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            torch.distributed.barrier()

    def device(self, name: str) -> str:
        """The device of this process: of a machine's GPUs its own one, unless a number is given."""
        if name != "cuda" or self.count == 1:
            return name
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"


ALONE = Processes()


@contextmanager
def sharing() -> Iterator[Processes]:
    """The processes that torchrun started, connected while the block runs; or this one alone."""
    # Job schedulers set WORLD_SIZE too; what torchrun sets beside it is needed to connect.
    started = all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    count = int(os.environ.get("WORLD_SIZE", "1")) if started else 1
    if count == 1:
        yield ALONE
        return
    # Nothing but waiting goes over it, so gloo does for GPUs, too.
    torch.distributed.init_process_group("gloo", timeout=_LONGEST_WAIT)
    try:
        yield Processes(torch.distributed.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        torch.distributed.destroy_process_group()
