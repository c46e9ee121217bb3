"""The queue of requests: one generation at a time, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from time import perf_counter

from .engine import ClientLeft, Completion, Engine, GenerationRequest
from .errors import ApiError

_log = logging.getLogger(__name__)


class RequestQueue:
    """Hands requests to the engine one after the other, first come, first served.

    At most `max_waiting` wait beside the one that is being answered.
    """

    def __init__(self, engine: Engine, max_waiting: int):
        self._engine, self._max_waiting = engine, max_waiting
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generate")
        self._jobs: set[Job] = set()  # the running one and those that wait
        self._reserved = 0  # places of requests that are about to be submitted
        self._closed = False

    def __len__(self) -> int:
        self._jobs = {job for job in self._jobs if job.future and not job.future.done()}
        return len(self._jobs)

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Hold a place while a request is made ready: what is not let in costs no work.

        Raises:
            ApiError: the queue is full.
        """
        self.check_room()
        self._reserved += 1
        try:
            yield
        finally:
            self._reserved -= 1

    def submit(self, request: GenerationRequest) -> Job:
        """Put a request into the queue.

        Raises:
            ApiError: the queue is full.
        """
        self.check_room()
        job = Job(request)
        job.future = self._worker.submit(job.run, self._engine)
        self._jobs.add(job)
        return job

    def check_room(self) -> None:
        """Raises ApiError where the queue is full."""
        if self._closed:
            raise _stopping()
        if len(self) + self._reserved > self._max_waiting:
            raise ApiError(
                f"the server is busy: {self._max_waiting} requests wait already; try again later",
                status=429,
                code="rate_limit_exceeded",
                kind="rate_limit_error",
            )

    async def close(self) -> None:
        """Cancel everything, let nobody in, and wait until the worker has stopped."""
        self._closed = True
        self._worker.shutdown(wait=False, cancel_futures=True)
        for job in self._jobs:
            job.cancel(_stopping())
        await asyncio.to_thread(self._worker.shutdown)


class Job:
    """A request in the queue; belongs to the event loop that made it."""

    def __init__(self, request: GenerationRequest):
        self._request = request
        self._submitted = perf_counter()
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[str | Completion | BaseException] = asyncio.Queue()
        self._left = Event()
        self.future: Future[None] | None = None  # its place in the queue
        self._over = False  # whether a completion or an error was handed out

    async def events(self) -> AsyncIterator[str | Completion]:
        """The pieces of the text as they come, and then the completion.

        Raises:
            Exception: what the generation raised, or the reason why it was cancelled.
        """
        while True:
            item = await self._items.get()
            self._over = self._over or not isinstance(item, str)
            if isinstance(item, BaseException):
                raise item
            yield item
            if self._over:
                return

    def cancel(self, reason: Exception) -> bool:
        """Leave the queue, or stop at the next layer or token.

        Returns:
            Whether there was something to stop.
        """
        if self._over:
            return False
        self._over = True
        self._left.set()
        if self.future is not None:
            self.future.cancel()
        self._items.put_nowait(reason)
        return True

    def run(self, engine: Engine) -> None:
        """Generate, in the worker's thread."""
        try:
            waited = perf_counter() - self._submitted
            self._tell(engine.generate(self._request, self._tell, self._left, waited))
        except ClientLeft:
            pass  # `cancel` has told it
        except BaseException as error:
            _log.error("a generation failed", exc_info=error)
            # Its frames hold the cache, and with it memory that nobody counts.
            self._tell(error.with_traceback(None))

    def _tell(self, item: str | Completion | BaseException) -> None:
        self._loop.call_soon_threadsafe(self._items.put_nowait, item)


def _stopping() -> ApiError:
    return ApiError("the server is stopping", status=503, kind="server_error")
