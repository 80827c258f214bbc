"""CPython's own tests of its servers, with our classes in the place of the stock ones.

``python cpython.py SUBSTITUTION`` replaces the classes, runs the tests that go with them and prints unittest's report.
Run by ``test_cpython.py`` in a process of its own, since what is replaced stays replaced.

Exit status: 0 all passed; 1 a test failed, or left a thread or a process behind; 78 this interpreter ships no tests.
"""

import faulthandler
import http.server
import importlib
import importlib.util
import os
import sys
import threading
import unittest
import wsgiref.simple_server
import xmlrpc.server
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType

import poolserver

NO_TESTS_STATUS = 78

LEAVE_TIMEOUT = 5.0
"""Seconds for a thread that is over to be gone; it needs microseconds."""

HANG_TIMEOUT = 70.0
"""Seconds until every thread's stack is printed, shortly before ``test_cpython.py`` gives up waiting."""

_NAMES = "compares a stock module's __all__ with its names, which the substitution changes; no server in it"
_BOOKKEEPING = "reads ThreadingMixIn's private list of threads (server._threads)"
_RAISES = "SystemExit of a handler ends a lane's request, not the caller of handle_request"
_MEMORY = "the handler sets attributes of the server object, which a forked one has to itself"
_EVENT = "ThreadingMixIn is passed over, and what sets the event that the test waits for is a forked process"


@dataclass(frozen=True)
class Substitution:
    """A test module of CPython's, what stands for which class in it, and the tests that cannot hold, each with why."""

    module: str
    replaced: Mapping[tuple[ModuleType, str], type]
    excluded: Mapping[str, str] = field(default_factory=dict)


def prethreaded(stock: type) -> type:
    """``stock`` pre-threaded, as a user would write it."""
    return type(stock.__name__, (poolserver.PreThreadMixIn, stock), {"__module__": __name__})


def substitutions() -> dict[str, Substitution]:
    """By the names that ``test_cpython.py`` gives."""
    return {
        "mixins": Substitution(
            "test_socketserver",
            {
                **_socketserver("Forking", "PreFork", "MixIn"),
                **_socketserver("Threading", "PreThread", "MixIn"),
            },
            {"MiscTestCase.test_all": _NAMES, "MiscTestCase.test_threads_reaped": _BOOKKEEPING},
        ),
        "prethread": Substitution(
            "test_socketserver",
            _socketserver("", "PreThread"),
            {
                "MiscTestCase.test_all": _NAMES,
                "MiscTestCase.test_threads_reaped": _BOOKKEEPING,
                "ErrorHandlerTest.test_sync_not_handled": _RAISES,
            },
        ),
        "prefork": Substitution(
            "test_socketserver",
            _socketserver("", "PreFork"),
            {
                "MiscTestCase.test_all": _NAMES,
                "MiscTestCase.test_threads_reaped": _BOOKKEEPING,
                "ErrorHandlerTest.test_sync_not_handled": _RAISES,
                "ErrorHandlerTest.test_threading_handled": _EVENT,
                "ErrorHandlerTest.test_threading_not_handled": _EVENT,
                "SocketWriterTest.test_basics": _MEMORY,
                "SocketWriterTest.test_write": _MEMORY,
            },
        ),
        "httpservers": Substitution("test_httpservers", _http(), {"MiscTestCase.test_all": _NAMES}),
        "xmlrpc": Substitution("test_xmlrpc", {**_http(), **_xmlrpc()}),
        "docxmlrpc": Substitution("test_docxmlrpc", {**_http(), **_xmlrpc()}),
        "wsgiref": Substitution(
            "test_wsgiref",
            {(wsgiref.simple_server, "WSGIServer"): prethreaded(wsgiref.simple_server.WSGIServer)},
        ),
    }


def _socketserver(stock: str, ours: str, *more: str) -> dict[tuple[ModuleType, str], type]:
    """socketserver's classes whose names begin with ``stock``; 3.11 has no ForkingUnix… yet."""
    module = importlib.import_module("socketserver")
    kinds = ["TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer", *more]
    return {(module, stock + kind): getattr(poolserver, ours + kind) for kind in kinds if hasattr(module, stock + kind)}


def _http() -> dict[tuple[ModuleType, str], type]:
    return {
        (http.server, "HTTPServer"): poolserver.PreThreadHTTPServer,
        (http.server, "ThreadingHTTPServer"): prethreaded(http.server.ThreadingHTTPServer),
    }


def _xmlrpc() -> dict[tuple[ModuleType, str], type]:
    names = ["SimpleXMLRPCServer", "MultiPathXMLRPCServer", "DocXMLRPCServer"]
    return {(xmlrpc.server, name): prethreaded(getattr(xmlrpc.server, name)) for name in names}


def substituted(substitution: Substitution) -> ModuleType:
    """Replace the classes, then import the test module, so that what it imports by name is ours too."""
    stock = {getattr(module, name) for module, name in substitution.replaced}
    for (module, name), ours in substitution.replaced.items():
        setattr(module, name, ours)
        if name == "WSGIServer":  # make_server took the stock class as a default when it was defined
            module.make_server.__defaults__ = (ours, *module.make_server.__defaults__[1:])
    tests = importlib.import_module(f"test.{substitution.module}")
    left = sorted(name for name, value in vars(tests).items() if isinstance(value, type) and value in stock)
    if left:
        sys.exit(f"{tests.__name__} still has the stock {', '.join(left)}")
    return tests


def selected(tests: ModuleType, excluded: Mapping[str, str]) -> unittest.TestSuite:
    """All tests but the excluded. One that is not there is an error: its reason has gone, or its name has changed."""
    cases = {case.id().removeprefix(f"{tests.__name__}."): case for case in _cases(tests)}
    if missing := excluded.keys() - cases.keys():
        sys.exit(f"{tests.__name__} has no {', '.join(sorted(missing))}")
    for name, reason in excluded.items():
        print(f"excluded: {name}: {reason}")
    return unittest.TestSuite(case for name, case in cases.items() if name not in excluded)


def _cases(tests: ModuleType) -> Iterator[unittest.TestCase]:
    def flat(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
        for each in suite:
            yield from flat(each) if isinstance(each, unittest.TestSuite) else [each]

    return flat(unittest.defaultTestLoader.loadTestsFromModule(tests))


def left_behind() -> list[str]:
    """Threads and children that outlived the tests, and whether test.support saw one (it waits for a while first)."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for thread in others:
        thread.join(LEAVE_TIMEOUT)
    found = [f"thread {thread.name}" for thread in others if thread.is_alive()]
    try:
        found.append(f"child {os.waitpid(-1, os.WNOHANG)}")
    except ChildProcessError:
        pass  # none, as it should be
    if importlib.import_module("test.support").environment_altered:
        found.append("what test.support warned of above")
    return found


def main(name: str) -> int:
    substitution = substitutions()[name]
    if importlib.util.find_spec("test") is None or importlib.util.find_spec(f"test.{substitution.module}") is None:
        print(
            f"{sys.executable} ships no test.{substitution.module}: install CPython's own tests"
            f" (Debian: apt install libpython3-testsuite)"
        )
        return NO_TESTS_STATUS
    faulthandler.dump_traceback_later(HANG_TIMEOUT)
    suite = selected(substituted(substitution), substitution.excluded)
    result = unittest.TextTestRunner(sys.stdout, verbosity=2).run(suite)
    left = left_behind()
    for each in left:
        print(f"left behind: {each}")
    return 0 if result.wasSuccessful() and not left else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
