"""A bounded queue between two threads that either end can close, so that nobody ever waits for someone who has gone."""

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The other end has gone."""


class Channel(Generic[T]):
    """Hands items over in order; blocks the giver while it is full and the taker while it is empty."""

    def __init__(self, capacity: int) -> None:
        """Hold at most `capacity` items."""
        self._items: deque[T] = deque()
        self._capacity, self._ended, self._closed = capacity, False, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Hand over an item.

        Raises:
            Closed: nobody will take it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._capacity)
            if self._closed:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Take the next item.

        Raises:
            Closed: there are no more.
            BaseException: whatever ended the giver, once all that it gave has been taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._ended or self._items)
            if self._closed or not self._items:
                if self._error is not None and not self._closed:
                    raise self._error
                raise Closed
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def end(self, error: BaseException | None = None) -> None:
        """No more items will be given; what was given can still be taken, then `error` is raised."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of everything: whoever waits, or asks again, is told `Closed`."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
