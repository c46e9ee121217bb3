"""Options of `lazyllm-ext serve`."""

from __future__ import annotations

from typing import Annotated

import typer

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0: a free one.")]
CacheMemory = Annotated[
    float, typer.Option(help="GiB for the caches of conversations; 0: keep none.")
]
MaxTokens = Annotated[
    int, typer.Option(help="Longest answer in a chat whose request names no max_tokens.")
]
MaxQueue = Annotated[int, typer.Option(help="Requests that may wait for the one that is answered.")]
ModelName = Annotated[
    str | None, typer.Option(help="Name in requests; by default that of the folder.")
]
ApiKey = Annotated[
    str | None, typer.Option(help="What clients have to send.", envvar="LAZYLLM_API_KEY")
]
