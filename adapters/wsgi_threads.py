"""The threads that run WSGI applications, and the way back to the event loop.

A stock executor costs two futures, a lock and a wake-up of the loop for every
request. Here requests wait in a deque that both sides touch by atomic operations
only, a `queue.SimpleQueue` of tokens wakes the threads (it blocks and wakes in C),
and what the threads have to say to the loop is delivered in batches: one
``call_soon_threadsafe`` for all that happens until the loop comes to look.

The state of a job is where it is: in ``_waiting``, then in ``_running``. Whoever
takes it out of the first, a thread to run it or the loop because it waited too
long or its client left, is the only one who may go on with it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from queue import SimpleQueue

from .errors import Unavailable

logger = logging.getLogger("tetrapylon.adapters.wsgi")

_JOIN_POLL_S = 0.01


class Job:
    """What a thread runs: the base of a request's `Call`.

    ``run`` is called in the thread and must not raise; the other two are called
    by whoever ends the job early, and must be quick.
    """

    __slots__ = ("deadline_s",)

    def __init__(self) -> None:
        #: When to give up waiting for a thread, in the loop's time; set by `submit`.
        self.deadline_s = 0.0

    def run(self) -> None:
        """Do the work (in the thread)."""
        raise NotImplementedError

    def expire(self) -> None:
        """Take note that no thread came in time and none will (any thread)."""
        raise NotImplementedError

    def leave(self) -> None:
        """Take note that nobody waits for the result any more (any thread)."""
        raise NotImplementedError

    def on_news(self) -> None:
        """Look at what has changed; called on the loop for every `Mailbox.post`."""
        raise NotImplementedError


class Mailbox:
    """News of threads to the jobs of one event loop, delivered in batches."""

    __slots__ = ("_is_scheduled", "_jobs", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._jobs: deque[Job] = deque()
        self._is_scheduled = False

    def post(self, job: Job) -> None:
        """Have the loop call ``job.on_news()`` soon. Any thread may call this."""
        self._jobs.append(job)
        # `_deliver` takes the flag down before it looks: what is appended while the flag
        # is up is seen by the delivery that is still to come.
        if not self._is_scheduled:
            self._is_scheduled = True
            try:
                self.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                # The loop is closed, and with it went everybody who waited.
                self._jobs.clear()

    def _deliver(self) -> None:
        self._is_scheduled = False
        jobs = self._jobs
        while jobs:
            jobs.popleft().on_news()


class WorkerThreads:
    """A bounded pool of daemon threads behind a bounded queue.

    Threads are started as they are first needed. At most ``queue`` jobs wait,
    each for at most ``queue_wait_s`` seconds.
    """

    def __init__(self, *, threads: int, queue: int, queue_wait_s: float, name: str) -> None:
        if threads < 1 or queue < 0:
            raise ValueError(f"{threads} threads with a queue of {queue}: no request could run")
        self.name = name
        self._size = threads
        self._limit = threads + queue
        self._queue_wait_s = queue_wait_s
        self._threads: list[threading.Thread] = []
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._mailbox: Mailbox | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._is_closed = False

    def mailbox(self) -> Mailbox:
        """Return the mailbox of the running event loop."""
        loop = asyncio.get_running_loop()
        mailbox = self._mailbox
        if mailbox is None or mailbox.loop is not loop:
            mailbox = self._mailbox = Mailbox(loop)
            # A timer of another loop may never fire.
            self._expiry = None
        return mailbox

    def submit(self, job: Job) -> None:
        """Have a thread run the job; call this on the loop of `mailbox`.

        Raises `Unavailable` when every thread is busy and the queue full, or
        after `close`.
        """
        waiting = self._waiting
        outstanding = len(waiting) + len(self._running)
        if outstanding >= self._limit:
            raise Unavailable(
                f"all {self._size} threads of {self.name} are busy and {len(waiting)} requests"
                " wait for them",
                retry_after_s=1,
            )
        if self._is_closed:
            raise Unavailable(f"{self.name} is shutting down", retry_after_s=1)
        if len(self._threads) < self._size and len(self._threads) <= outstanding:
            self._start_thread()
        mailbox = self._mailbox
        assert mailbox is not None
        job.deadline_s = mailbox.loop.time() + self._queue_wait_s
        waiting.append(job)
        # A job that expired left its token behind. Using that up first bounds the tokens
        # by the queue, however long every thread hangs.
        if self._tokens.qsize() < len(waiting):
            self._tokens.put(None)
        if self._expiry is None:
            self._expiry = mailbox.loop.call_at(job.deadline_s, self._expire)

    def withdraw(self, job: Job) -> bool:
        """Take back a job that no thread has begun; tell whether that came in time."""
        try:
            self._waiting.remove(job)
        except ValueError:
            return False
        return True

    def open(self) -> None:
        """Take jobs again after a `close`."""
        self._is_closed = False
        self._threads = [thread for thread in self._threads if thread.is_alive()]

    def close(self) -> None:
        """End idle threads now, and the others when their work is done.

        Waiting jobs expire; running ones are told that nobody waits any more.
        """
        self._is_closed = True
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        for job in list(self._waiting):
            if self.withdraw(job):
                job.expire()
        for job in self._running.copy():
            job.leave()
        for _ in self._threads:
            self._tokens.put(None)

    async def join(self, timeout_s: float) -> None:
        """Wait for the threads to end after `close`, ``timeout_s`` seconds at most.

        What still runs then is left behind: the threads are daemons, so that an
        application that hangs cannot hold the process.
        """
        # Not in a thread that joins them: the interpreter would wait for that one at its end.
        deadline_s = time.monotonic() + timeout_s
        while (left := sum(map(threading.Thread.is_alive, self._threads))) and (  # noqa: ASYNC110
            time.monotonic() < deadline_s
        ):
            await asyncio.sleep(_JOIN_POLL_S)
        if left:
            logger.warning("%s: %d threads still run the application; left behind", self.name, left)

    def _start_thread(self) -> None:
        number = len(self._threads) + 1
        thread = threading.Thread(target=self._work, name=f"{self.name}-{number}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # A limit of the system. Those that run already will come to it.
            if not self._threads:
                raise Unavailable(f"{self.name}: {error}", retry_after_s=1) from None
            return
        self._threads.append(thread)

    def _work(self) -> None:
        take_token = self._tokens.get
        take_job = self._waiting.popleft
        running = self._running
        while True:
            take_token()
            try:
                job = take_job()
            except IndexError:
                if self._is_closed:
                    return
                continue
            running.add(job)
            try:
                job.run()
            except BaseException:
                # `run` answers for what applications raise: this is a defect of ours, which
                # must cost one request and not a thread of the pool.
                logger.critical("%s: a worker failed", self.name, exc_info=True)
                job.expire()
            finally:
                running.discard(job)
            # A thread without work holds on to nothing of the last request.
            del job

    def _expire(self) -> None:
        """Give up on the jobs that have waited too long, and come back for the next one."""
        self._expiry = None
        mailbox = self._mailbox
        if mailbox is None:
            return
        now_s = mailbox.loop.time()
        while True:
            try:
                job = self._waiting[0]
            except IndexError:
                return
            if job.deadline_s > now_s:
                self._expiry = mailbox.loop.call_at(job.deadline_s, self._expire)
                return
            if self.withdraw(job):
                job.expire()
