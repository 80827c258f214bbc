"""The shape of the code, measured: arrows point downward, each power has one home, sizes stay within STYLE's bounds."""

import ast
import functools
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

import poolserver

PACKAGE = Path(poolserver.__file__).parent
FILES = sorted(PACKAGE.glob("*.py"))

# From the top down: a module imports only what stands below it.
LAYERS = """
    __main__ cli top trends whereabouts tables check unit __init__ exporter server service legacy succession
    surroundings daemonize pidfile vigil herald spawning console heir upgrader nurse companion control metrics
    queues rendezvous remote master parties resident worker generation portions recycling handlers seating aio_crew
    aio_floor aio_deadlines aio_seat aio_lobby aio_datagrams aio_protocols aio_loop aio functions crew attendant
    deadlines mending here lane exchanges reception handling handover park stages transit access parked conversation
    shortage station door wakeups waits adapter binding listener systemd tcp_info socket_options unix_path holders
    address datagrams shared_socket process inquiry stacks signals failures log journal streams lines privileges
    config sections values proxy_protocol tls admission sources claims networks scoreboard rows crowds pool turnover
    fates roster upgrade reload tally repeats snapshot events states estate commands variables
    processors usage errors
""".split()  # noqa: SIM905 - as a list it would be thirty lines

# Each power and the modules where it may be used; `name` is as an AST sees it, the import resolved.
HOMES = {
    "os.fork": {"process"},
    "os.kill": {"process"},
    "os.killpg": {"process"},
    "os.waitpid": {"process"},
    "signal.pidfd_send_signal": {"process"},
    "os.setuid": {"privileges"},
    "os.setgid": {"privileges"},
    "os.seteuid": {"privileges"},
    "os.setegid": {"privileges"},
    "os.setresuid": {"privileges"},
    "os.setresgid": {"privileges"},
    "os.setgroups": {"privileges"},
    "os.umask": {"surroundings"},
    "signal.signal": {"signals"},
    "signal.set_wakeup_fd": {"signals"},
    "signal.pthread_sigmask": {"signals"},
    "os.environ": {"variables", "systemd"},
    "os.getenv": set[str](),
    "socket.socket": {
        "handover",
        "heir",
        "journal",
        "listener",
        "shared_socket",
        "unix_path",
        "remote",
        "queues",
        "systemd",
    },
    "socket.create_server": set[str](),
    "socket.create_connection": set[str](),
    "setproctitle.setproctitle": {"log"},
    "threading.Thread": {"crew", "aio_crew"},
    "print": {"cli"},
    "sys.exit": {"cli"},
    "click.echo": {"cli"},
    "exit": set[str](),
    "quit": set[str](),
}
_ON_LOOP = {f"aio_{part}" for part in ("crew", "floor", "deadlines", "seat", "lobby", "datagrams", "protocols", "loop")}
IMPORT_HOMES = {
    "psutil": {"metrics", "recycling"},
    "setproctitle": {"log"},
    "daemon": {"daemonize"},
    "click": {"cli"},
    "rich": {"top"},
    "prometheus_client": {"exporter"},
    "pydantic": {"sections", "config", "values"},
    "asyncio": _ON_LOOP,
    "mmap": {"claims", "crowds", "scoreboard", "sources", "failures"},
    "multiprocessing": set[str](),
    "pickle": set[str](),  # C04: whoever writes a pickle runs code in whoever reads it
    "marshal": set[str](),
    "shelve": set[str](),
}
_OS = {"os", "socket", "signal", "time", "select", "threading", "mmap"}
PURE = dict.fromkeys(
    ("pool", "turnover", "fates", "roster", "reload", "upgrade", "estate", "admission", "repeats", "waits"), _OS
) | {
    "proxy_protocol": _OS - {"socket"}  # whose inet_pton reads addresses
}

MAX_FILE_LINES = 350
MAX_BODY_LINES = 50
MAX_NESTING = 3


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module, node
            yield from ((f"{module}.{alias.name}", node) for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """The modules of this package that ``path`` imports."""
    names = {name.removeprefix("poolserver.").partition(".")[0] for name, _ in imports(path) if "poolserver." in name}
    return {name for name in names if (PACKAGE / f"{name}.py").exists()}


@functools.cache
def type_checking_nodes(path: Path) -> frozenset[int]:
    blocks = [
        node
        for node in nodes(path)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    return frozenset(id(inner) for block in blocks for inner in ast.walk(block))


def uses(path: Path) -> Iterator[str]:
    """Dotted names as written in executable code: ``os.fork``, ``print``. ``from os import fork`` counts too."""
    for node in nodes(path):
        if is_annotation_or_check(path, node):
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def quiet_nodes(path: Path) -> frozenset[int]:
    """Nodes that only name a class: annotations, bases, isinstance checks, calls of its methods on an instance."""
    quiet: set[int] = set()
    for node in nodes(path):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parts = [node.returns, *(arg.annotation for arg in ast.walk(node.args) if isinstance(arg, ast.arg))]
        elif isinstance(node, ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.ClassDef):
            parts = [*node.bases]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            parts = [node.args[1]]
        elif isinstance(node, ast.Subscript):
            parts = [node.slice]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            parts = [node.value]  # socket.socket.recv_into(sock, …): a method, nothing is made
        for part in parts:
            quiet |= {id(inner) for inner in ast.walk(part)} if part is not None else set()
    return frozenset(quiet)


def is_annotation_or_check(path: Path, node: ast.AST) -> bool:
    return id(node) in quiet_nodes(path)


def test_every_module_has_a_layer() -> None:
    """A new file finds its place in the order before it lands."""
    assert sorted(LAYERS) == sorted(path.stem for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_point_downward(path: Path) -> None:
    """No import cycle, and no arrow up."""
    position = LAYERS.index(path.stem)
    upward = {name for name in own_imports(path) if LAYERS.index(name) <= position and path.stem != "__init__"}
    assert not upward


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_import_hides_in_a_function(path: Path) -> None:
    """What a module needs stands at its top."""
    inner = [node for function in functions(path) for node in ast.walk(function)]
    assert not [node.lineno for node in inner if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_power_is_used_at_home(path: Path) -> None:
    """fork, kill, wait, signal handlers, environment, sockets, titles, threads, printing: one home each."""
    used = set(uses(path))
    assert not {power for power, homes in HOMES.items() if power in used and path.stem not in homes}
    modules = {name.partition(".")[0] for name, node in imports(path) if id(node) not in type_checking_nodes(path)}
    assert not {name for name, homes in IMPORT_HOMES.items() if name in modules and path.stem not in homes}


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_no_operating_system(module: str) -> None:
    """The supervisor and admission decide; they do not act and do not look at a clock."""
    modules = {name.partition(".")[0] for name, _ in imports(PACKAGE / f"{module}.py")}
    assert not modules & PURE[module]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_short(path: Path) -> None:
    """A file that grows past its idea is reshaped."""
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_function_is_long(path: Path) -> None:
    """No body above 50 lines."""
    assert not [function.name for function in functions(path) if body_lines(function) > MAX_BODY_LINES]


def test_most_functions_are_small() -> None:
    """Half of the bodies are 5 lines or fewer, nine in ten 20 or fewer."""
    lengths = [body_lines(function) for path in FILES for function in functions(path)]
    assert statistics.median(lengths) <= 5
    assert sum(length <= 20 for length in lengths) >= 0.9 * len(lengths)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nesting_is_shallow(path: Path) -> None:
    """At most three blocks inside one another."""
    blocks = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match, ast.AsyncFor, ast.AsyncWith)

    def depth(node: ast.AST, level: int = 0) -> int:
        level += isinstance(node, blocks)
        inner = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.FunctionDef)]
        # an elif is written at its if's level
        chained = isinstance(node, ast.If) and len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If)
        levels = [depth(child, level - (chained and child is node.orelse[0])) for child in inner]
        return max([level, *levels])

    deep = {function.name: depth(function) for function in functions(path)}
    assert not {name: levels for name, levels in deep.items() if levels > MAX_NESTING}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_public_names_have_docstrings(path: Path) -> None:
    """Every module, public class and public function of a module says what and why."""
    assert ast.get_docstring(tree(path))
    public = [node for node in tree(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    # events and actions are named by their class; their module says what they are
    exempt = path.stem in ("events",)
    missing = [node.name for node in public if node.name[0] != "_" and not ast.get_docstring(node)]
    assert exempt or not missing


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dropped_exceptions_have_a_reason(path: Path) -> None:
    """``except …: pass`` only with a comment beside it."""
    lines = path.read_text().splitlines()
    for node in nodes(path):
        if isinstance(node, ast.ExceptHandler) and len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
            assert "#" in lines[node.body[0].lineno - 1], f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_private_name_of_socketserver_is_touched(path: Path) -> None:
    """Their meaning is about to change upstream (gh-88932)."""
    text = path.read_text()
    for private in ("_BaseServer__", "_handle_request_noblock", "_ServerSelector"):
        assert private not in text
