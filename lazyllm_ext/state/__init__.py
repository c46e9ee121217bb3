"""The one place that knows LazyLLM's bookkeeping."""

from .edit import crop_, select_sequences
from .saving import from_tensors, to_tensors
from .stores import (
    enter_stage_,
    give_back_,
    put_waiting_,
    take_waiting_,
)
from .tables import (
    LazyState,
    StoreSpec,
    active,
    aux_nbytes,
    computed,
    computed_per_stage,
    kv_nbytes,
    lengths,
    new_state,
    read,
    reserve_tokens_,
    revived,
    table_columns,
    table_nbytes,
    waiting,
    waiting_per_boundary,
    write_,
)

__all__ = [
    "LazyState",
    "StoreSpec",
    "active",
    "aux_nbytes",
    "computed",
    "computed_per_stage",
    "crop_",
    "enter_stage_",
    "from_tensors",
    "give_back_",
    "kv_nbytes",
    "lengths",
    "new_state",
    "put_waiting_",
    "read",
    "reserve_tokens_",
    "revived",
    "select_sequences",
    "table_columns",
    "table_nbytes",
    "take_waiting_",
    "to_tensors",
    "waiting",
    "waiting_per_boundary",
    "write_",
]
