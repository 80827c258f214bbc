"""Binding: the listeners of bind URLs, all of them or none; what systemd passed is adopted for the URL that it is for.

Runs in the master. What one listener is and does is ``listener.py``'s.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from poolserver.address import Address, parse
from poolserver.errors import SystemRefusedError
from poolserver.listener import Listener, NoSuchFamilyError, Options, adopt_passed, bind
from poolserver.systemd import Adopted, Passed

_log = logging.getLogger("poolserver")

_DUAL_PORT_TRIES = 16
"""``tcp://:0`` wants one free port in both families; the kernel picks it in the first and it may be taken in the
second."""


@dataclass(frozen=True)
class Group:
    """The listeners of one bind URL, as it was given: two for ``tcp://:PORT``."""

    url: str
    listeners: tuple[Listener, ...]


def bind_all(urls: Sequence[str], options: Options) -> list[Listener]:
    """As ``bind_groups``, with nothing bound before."""
    return [listener for group in bind_groups(urls, options) for listener in group.listeners]


def bind_groups(
    urls: Sequence[str], options: Options, held: Sequence[Group] = (), passed: Passed | None = None
) -> list[Group]:
    """Bind every URL, or none: what was bound before a failure is closed again.

    Args:
        urls: Bind URLs.
        options: For all of them.
        held: Groups that are bound already. Theirs is what a URL among them gets, and is not touched.
        passed: What systemd passed: a socket that is bound to the address of a URL is adopted for it.

    Raises:
        ConfigError: a URL cannot be parsed.
        SystemRefusedError: the system refused to bind; names the address, the reason, and who holds it.
    """
    free = list(held)
    kept = {place: free.pop(index) for place, url in enumerate(urls) if (index := _index_of(url, free)) is not None}
    addresses = {place: parse(url) for place, url in enumerate(urls) if place not in kept}
    fresh: dict[int, Group] = {}
    try:
        # ``systemd:`` means whatever no other URL does, so it comes last.
        for place, group in sorted(addresses.items(), key=lambda item: item[1][0].url == "systemd:"):
            fresh[place] = Group(urls[place], tuple(_find_group(group, options, passed or Passed())))
    except BaseException:
        for bound in fresh.values():
            close_all(bound.listeners)
        raise
    return [kept.get(place) or fresh[place] for place in range(len(urls))]


def close_all(listeners: Iterable[Listener]) -> None:
    """Close each of them."""
    for listener in listeners:
        listener.close()


def _index_of(url: str, groups: Sequence[Group]) -> int | None:
    return next((index for index, group in enumerate(groups) if group.url == url), None)


def _find_group(group: list[Address], options: Options, passed: Passed) -> list[Listener]:
    """The listeners of one URL: adopted, where they were passed, else bound."""
    adopted, missing = passed.claim(group)
    listeners: list[Listener] = []
    try:
        listeners += (_adopt(each, options) for each in adopted)
        return listeners + (_bind_group(missing, options) if missing else [])
    except BaseException:
        close_all(listeners)
        raise


def _adopt(found: Adopted, options: Options) -> Listener:
    """One of systemd's, or our own that it kept: of that, the file, if it has one, is ours to remove."""
    listener = adopt_passed(found.socket, found.address.url, options)
    if not found.address.is_passed:
        listener.address = found.address  # which knows what is spoken there
    if found.is_stored:
        listener.is_adopted = False
        if listener.is_stream:
            listener.socket.listen(options.backlog)
        if listener.address.has_file:
            listener.note_file()
    return listener


def _bind_group(group: list[Address], options: Options) -> list[Listener]:
    """Bind the addresses of one URL, with one port for all of them when the URL left it to the kernel."""
    if len(group) == 1 or group[0].sockaddr[1] != 0:
        return _bind_each(group, options)
    for attempt in range(_DUAL_PORT_TRIES):
        first = bind(group[0], options)
        port = first.socket.getsockname()[1]
        others = [Address(each.scheme, each.family, (str(each.sockaddr[0]), port)) for each in group[1:]]
        try:
            return [first, *_bind_each(others, options)]
        except SystemRefusedError:
            first.close()
            if attempt == _DUAL_PORT_TRIES - 1:
                raise
    raise AssertionError("the loop returns or raises")


def _bind_each(group: list[Address], options: Options) -> list[Listener]:
    bound: list[Listener] = []
    for address in group:
        try:
            bound.append(bind(address, options))
        except NoSuchFamilyError as error:
            if len(group) == 1:
                raise
            _log.warning("%s", error)  # a machine without IPv6 still serves 0.0.0.0
        except BaseException:
            for listener in bound:
                listener.close()
            raise
    return bound
