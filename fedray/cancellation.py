"""Cancellation: local work that nobody waits for any more ends between two of its steps.

Who runs a site's code says how to tell (`asking`); loops over local steps ask (`stop_if_cancelled`), and
know nothing of deadlines or hosts. It is known in the thread that runs the site's code and in no other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Ask = Callable[[], bool]
_ask: ContextVar[Ask | None] = ContextVar("is_cancelled", default=None)


class Cancelled(BaseException):
    """Nobody waits for this work any more. No Exception: what goes on after an error must not go on here."""


@contextmanager
def asking(is_cancelled: Ask | None) -> Iterator[None]:
    """Let loops in this block ask `is_cancelled` in every step: it may cost a clock read, and no more."""
    token = _ask.set(is_cancelled)
    try:
        yield
    finally:
        _ask.reset(token)


def asked() -> Ask | None:
    """Return what loops ask here, None where nothing cancels them."""
    return _ask.get()


def stop_if_cancelled() -> None:
    """Stop this site's work where its round no longer waits for it; call it in each step of a loop.

    The site then counts as late, and keeps the state that it had. Does nothing where no deadline is set.
    Clean up with `finally` or `with`: what is raised is no Exception, and is not to be caught.
    """
    is_cancelled = _ask.get()
    if is_cancelled is not None and is_cancelled():
        raise Cancelled


def of_all(asks: list[Ask | None]) -> Ask | None:
    """Return what tells whether all of several have been cancelled; None where one cannot be."""
    known = [ask for ask in asks if ask is not None]
    return (lambda: all(ask() for ask in known)) if len(known) == len(asks) else None
