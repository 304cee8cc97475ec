"""Bare libcurl loops: nothing is checked but the status."""

from __future__ import annotations

import io
import select
from typing import Any, Final

import certifi
import pycurl

from bench.contenders import BUFFER_BYTES, Order, QueueWork, Work
from dlconsole.services import descriptors

_EPOLL_FOR: Final = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}


class _Handles:
    """A multi handle with its easy handles: starts fetches, and writes what has come."""

    def __init__(self, work: Work) -> None:
        order = work.order
        self.multi = pycurl.CurlMulti()
        self.multi.setopt(pycurl.M_MAXCONNECTS, 2 * order.concurrency)
        self._work = work
        self._waiting = iter(work)
        self._idle = [_easy(order) for _ in range(order.concurrency)]
        self._count = order.concurrency
        self._connect_to = order.connect_to
        self._left = True

    @property
    def busy(self) -> bool:
        """Whether anything runs or is still to be started."""
        return self._left or len(self._idle) < self._count

    @property
    def runs(self) -> bool:
        """Whether there is anything to wait for, and nothing that could be started instead."""
        return len(self._idle) < self._count and not (self._idle and self._left)

    def fill(self) -> None:
        """Start as many as there are handles."""
        while self._idle and self._left:
            number, url = next(self._waiting, (-1, ""))
            if number < 0:
                self._left = False
                return
            handle = self._idle.pop()
            handle.body, handle.number = io.BytesIO(), number
            handle.setopt(pycurl.WRITEFUNCTION, handle.body.write)
            handle.setopt(pycurl.URL, url)
            if self._connect_to:
                address = self._connect_to[number % len(self._connect_to)]
                handle.setopt(pycurl.CONNECT_TO, [f"::{address}"])
            self.multi.add_handle(handle)

    def collect(self) -> None:
        """Write what has ended."""
        more = 1
        while more:
            more, succeeded, failed = self.multi.info_read()
            for handle in succeeded:
                self.multi.remove_handle(handle)
                if handle.getinfo(pycurl.RESPONSE_CODE) == 200:
                    self._work.save(handle.number, handle.body.getbuffer())
                self._idle.append(handle)
            for handle, _, _ in failed:
                self.multi.remove_handle(handle)
                self._idle.append(handle)


def _easy(order: Order) -> Any:
    handle = pycurl.Curl()
    handle.setopt(pycurl.NOSIGNAL, 1)
    handle.setopt(pycurl.BUFFERSIZE, BUFFER_BYTES)
    handle.setopt(pycurl.PROXY, "")
    handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    handle.setopt(pycurl.CAINFO, order.ca_file or certifi.where())
    return handle


def perform_loop(work: Work) -> _Handles:
    """libcurl's multi interface as its manual has it: perform, info_read, select. What it returns is not closed
    within the time, as little as the worker's is.
    """
    handles = _Handles(work)
    while handles.busy:
        handles.fill()
        handles.multi.perform()
        handles.collect()
        if handles.runs:
            handles.multi.select(1.0)
    return handles


def epoll_loop(work: Work) -> _Handles:
    """libcurl's `socket_action` behind epoll, for more sockets than `select` takes (1,024)."""
    descriptors.raise_limit()
    handles = _Handles(work)
    multi, epoll = handles.multi, select.epoll()

    def on_socket(what: int, fd: int, _multi: Any, _data: Any) -> None:
        if what == pycurl.POLL_REMOVE:
            try:
                epoll.unregister(fd)
            except OSError:  # closed already
                pass
            return
        try:
            epoll.modify(fd, _EPOLL_FOR[what])
        except FileNotFoundError:
            epoll.register(fd, _EPOLL_FOR[what])

    multi.setopt(pycurl.M_SOCKETFUNCTION, on_socket)
    while handles.busy:
        handles.fill()
        due_ms = multi.timeout()
        if due_ms == 0:
            multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        handles.collect()
        if handles.runs:
            wait_s = 1.0 if due_ms < 0 else due_ms / 1000
            for fd, events in epoll.poll(wait_s, 256):
                mask = pycurl.CSELECT_IN if events & ~select.EPOLLOUT else 0
                if events & select.EPOLLOUT:
                    mask |= pycurl.CSELECT_OUT
                multi.socket_action(fd, mask)
            handles.collect()
    return handles


def queue_loop(work: QueueWork) -> _Handles:
    """The quicker of the two, with the least of a queue: no limit, no check, no retry, nothing in a thread."""
    handles = perform_loop(work)
    work.ack()
    return handles
