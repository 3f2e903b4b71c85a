"""Processes for runs: they end with whoever started them, and Ctrl-C is none of their business.

A terminal sends Ctrl-C to every process of a command, and one of them decides. A process that is still importing its
libraries would die of it with a traceback, before any line of ours is reached in it. So the signal is held back while
a process is started, which the new process inherits; it is let through again once it is ignored there.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import Any, TypeVar

Argument = TypeVar("Argument")
Answer = TypeVar("Answer")


class Processes:
    """Processes that wait for runs. Made by `processes`."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self._waiting: dict[Future[Any], None] = {}

    def submit(self, function: Callable[[Argument], Answer], argument: Argument) -> Future[Answer]:
        """Calls a function in one of the processes; starts that process where there are not all of them yet."""
        with ctrl_c_held_back():
            future = self._pool.submit(function, argument)
            self._waiting[future] = None
            future.add_done_callback(self._waiting.pop)
        return future

    def end(self) -> None:
        """Ends what still runs: nobody waits for runs that nobody will read."""
        # Not cancelled as well: a pool whose processes are gone gives up all that waits, and trips over what is
        # cancelled already (Python 3.11).
        if self._waiting:
            for process in active_children():
                process.terminate()


@contextmanager
def processes(count: int, *, prepare: Callable[[], None] | None = None) -> Iterator[Processes]:
    """Up to `count` processes; whoever leaves before their answers are there ends them.

    Args:
        prepare: Called once in each, before its first run.
    """
    # Spawned: forking a process that has threads, as JAX has, may hang.
    with ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=begin, initargs=(prepare,)
    ) as pool:
        started = Processes(pool)
        try:
            yield started
        finally:
            started.end()


@contextmanager
def ctrl_c_held_back() -> Iterator[None]:
    """Whoever pressed Ctrl-C is heard at the end; processes started meanwhile begin with the signal blocked."""
    heard: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # Blocked here, the signal still reaches the threads of numeric libraries, and through them Python's handler.
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: heard.append(number)) if main else None
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if heard:
            signal.raise_signal(signal.SIGINT)


def begin(prepare: Callable[[], None] | None = None) -> None:
    """The first thing that a process for runs does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # Without it, processes of a command that was killed wait for work for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "this is a process for runs"
    parent.join()
    os._exit(1)
