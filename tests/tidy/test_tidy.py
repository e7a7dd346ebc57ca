"""The shape of the code: layers, what the router process loads, sizes, and words that must not stand where."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ringbuffer", "router")
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
# Modules on the path of a token or a request: what they call is paid for by every user.
PATH_MODULES = [
    ROOT / "router" / name
    for name in (
        "admission/__init__.py",
        "admission/classes.py",
        "admission/decision.py",
        "admission/predict.py",
        "admission/waiting_room.py",
        "answers.py",
        "attempt.py",
        "caches/calls.py",
        "caches/embeddings.py",
        "caches/entries.py",
        "caches/intake.py",
        "caches/keeper_link.py",
        "caches/keys.py",
        "caches/memory.py",
        "caches/nearest.py",
        "caches/outbox.py",
        "caches/recording.py",
        "caches/replay.py",
        "caches/responses.py",
        "caches/selecting.py",
        "caches/selection.py",
        "caches/silent.py",
        "caches/tool_shapes.py",
        "caches/tools.py",
        "caches/urgency.py",
        "caches/warm.py",
        "dialects.py",
        "dispatching.py",
        "http1.py",
        "clients.py",
        "loop.py",
        "messages.py",
        "mould.py",
        "outbound.py",
        "picking.py",
        "recovery.py",
        "refusals.py",
        "request.py",
        "tracing.py",
        "asking.py",
        "routing/candidates.py",
        "routing/eligible.py",
        "routing/least_outstanding.py",
        "routing/order.py",
        "routing/p2c.py",
        "routing/predicted.py",
        "routing/prefix_affinity.py",
        "routing/prefixes.py",
        "routing/prompt.py",
        "routing/sticky.py",
        "routing/ttft_model.py",
        "routing/turns.py",
        "hosts/connection.py",
        "hosts/events.py",
        "hosts/fleet.py",
        "hosts/foreign.py",
        "hosts/scanner.py",
        "hosts/spares.py",
        "hosts/standing.py",
        "hosts/whole.py",
        "ingress/access.py",
        "ingress/heads.py",
        "ingress/http.py",
        "ingress/passthrough.py",
        "ingress/pinning.py",
        "ingress/server.py",
        "ingress/shapes.py",
        "ingress/submission.py",
        "ingress/wishes.py",
        "keys/account.py",
        "keys/registry.py",
        "keys/tokens.py",
        "keys/windows.py",
        "levers.py",
        "ingress/zeromq/reply.py",
        "ingress/zeromq/server.py",
    )
]
PURE_MODULES = [
    "router.admission.classes",
    "router.admission.decision",
    "router.admission.predict",
    "router.admission.waiting_room",
    "router.caches.entries",
    "router.caches.frames",
    "router.caches.keys",
    "router.caches.memory",
    "router.caches.responses",
    "router.caches.selection",
    "router.caches.tool_shapes",
    "router.caches.tools",
    "router.caches.urgency",
    "router.client.answer",
    "router.client.errors",
    "router.client.exchange",
    "router.client.failures",
    "router.client.protocol",
    "router.client.session",
    "router.client.timing",
    "router.dialects",
    "router.config.changes",
    "router.config.slo",
    "router.config.timeouts",
    "router.hosts.breaker",
    "router.hosts.events",
    "router.hosts.fold",
    "router.hosts.foreign",
    "router.hosts.outliers",
    "router.hosts.scanner",
    "router.hosts.slow_start",
    "router.hosts.spares",
    "router.hosts.standing",
    "router.hosts.whole",
    "router.ingress.zeromq.messages",
    "router.http1",
    "router.keys.account",
    "router.keys.tokens",
    "router.keys.windows",
    "router.observer.aggregate",
    "router.observer.alerts.bodies",
    "router.observer.alerts.evidence.cells",
    "router.observer.alerts.evidence.collect",
    "router.observer.alerts.evidence.comparison",
    "router.observer.alerts.evidence.examples",
    "router.observer.alerts.evidence.expected",
    "router.observer.alerts.evidence.judge",
    "router.observer.alerts.evidence.onset",
    "router.observer.alerts.evidence.recent",
    "router.observer.alerts.evidence.regressions",
    "router.observer.alerts.evidence.sentence",
    "router.observer.alerts.evidence.slices",
    "router.observer.alerts.evidence.stages",
    "router.observer.alerts.evidence.table",
    "router.observer.alerts.inhibit",
    "router.observer.alerts.ledger",
    "router.observer.alerts.model",
    "router.observer.alerts.text",
    "router.observer.alerts.watch",
    "router.observer.catalogue",
    "router.observer.cost",
    "router.observer.hist",
    "router.observer.hist_files",
    "router.observer.occupancy",
    "router.observer.prices",
    "router.observer.prometheus",
    "router.observer.rows",
    "router.observer.samples",
    "router.observer.sharing",
    "router.observer.slices",
    "router.observer.slo.book",
    "router.observer.slo.burn",
    "router.observer.slo.cells",
    "router.observer.slo.findings",
    "router.observer.slo.groups",
    "router.observer.slo.objectives",
    "router.observer.slo.readings",
    "router.observer.slo.status",
    "router.observer.totals",
    "router.cli.trace_drawing",
    "router.observer.traces.conventions",
    "router.observer.traces.kept",
    "router.observer.traces.page",
    "router.observer.traces.sampling",
    "router.observer.traces.spans",
    "router.observer.traces.tool_turns",
    "router.observer.view",
    "router.observer.windows",
    "router.routing.candidates",
    "router.routing.eligible",
    "router.routing.factory",
    "router.levers",
    "router.masking",
    "router.retry_budget",
    "router.routing.least_outstanding",
    "router.routing.order",
    "router.routing.p2c",
    "router.routing.policy",
    "router.routing.predicted",
    "router.routing.prefix_affinity",
    "router.routing.prefixes",
    "router.routing.prompt",
    "router.routing.sticky",
    "router.routing.ttft_model",
    "router.routing.turns",
    "router.stamps",
    "router.telemetry.decision",
    "router.telemetry.records",
    "router.telemetry.tags",
    "router.telemetry.trace_ids",
    "router.tracing",
    "router.verdicts",
]
# The third-party packages the router process may load, and nothing else but the standard library.
# (typing_extensions and rich come with structlog, where they are installed.)
ALLOWED_IN_ROUTER = {"typing_extensions", "rich", "pygments", "attr", "markdown_it", "mdurl"} | {
    "uvloop", "msgspec", "zmq", "httptools", "structlog", "xxhash", "lmdb", "router", "ringbuffer",
}  # fmt: skip
FUNCTION_LINES_MAX = 70


def imports_of(path: Path, *, run_time_only: bool = False) -> set[str]:
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    if run_time_only:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                skipped.update(child for statement in node.body for child in ast.walk(statement))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_ringbuffer_needs_nothing_but_the_standard_library() -> None:
    for path in (ROOT / "ringbuffer").rglob("*.py"):
        outside = (
            {m.split(".")[0] for m in imports_of(path, run_time_only=True)}
            - set(sys.stdlib_module_names)
            - {"ringbuffer"}
        )
        assert not outside, f"{path} imports {outside}"


def test_router_uses_only_public_names_of_ringbuffer() -> None:
    for path in (ROOT / "router").rglob("*.py"):
        public = {"ringbuffer.stats", "ringbuffer.sample", "ringbuffer.cli"}  # the generic part of `ringrouter stats`
        private = {m for m in imports_of(path) if m.startswith("ringbuffer.") and m not in public}
        assert not private, f"{path} imports {private}"


def layer(module: str) -> int:
    """Imports point downwards: a module may load only modules of a lower layer, or of its own package."""
    for prefix, number in (
        ("router.__main__", 10),
        ("router.cli", 9),
        ("router.client", 1),
        ("router.supervisor", 8),
        ("router.embedded", 8),
        ("router.daemon", 7),
        ("router.keep", 7),
        ("router.observer", 7),
        ("router.watch", 6),
        ("router.caches", 6),
        ("router.ingress", 6),
        ("router.hosts.health", 6),
        ("router.loop", 5),
        ("router.recovery", 4),
        ("router.clients", 4),
        ("router.refusals", 4),
        ("router.dispatching", 4),
        ("router.roster", 6),
        ("router.retry_budget", 0),
        ("router.sharing", 6),
        ("router.keys", 3),
        ("router.answers", 1),
        ("router.attempt", 4),
        ("router.asking", 2),
        ("router.outbound", 3),
        ("router.tracing", 3),
        ("router.verdicts", 3),
        ("router.hosts", 3),
        ("router.descriptors", 2),
        ("router.dialects", 2),
        ("router.picking", 3),
        ("router.request", 2),
        ("router.models", 2),
        ("router.messages", 2),
        ("router.telemetry.records", 0),
        ("router.telemetry", 2),
        ("router.admission", 1),
        ("router.levers", 3),
        ("router.routing", 1),
        ("router.http1", 1),
        ("router.log", 2),
        ("router.service.changeover", 6),
        ("router.service.pulse", 6),
        ("router.service.succession", 6),
        ("router.service.handover", 3),
        ("router.service.install", 8),
        ("router.service", 1),
        ("router.listeners", 6),
        ("router.doctor", 8),
        ("router.config_schema", 0),
        ("router.masking", 0),
        ("router.memory", 0),
        ("router.mould", 0),
        ("router.native", 0),
        ("router.token_state", 0),
        ("router.wait_strategy", 0),
        ("router.config_reference", 2),
        ("router.config", 1),
        ("router.errors", 0),
        ("router.stamps", 0),
    ):
        if module == prefix or module.startswith(prefix + "."):
            return number
    return -1


def test_imports_point_downwards() -> None:
    wrong = []
    for path in (ROOT / "router").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        own = layer(module)
        assert own >= 0 or module == "router", f"{module} has no layer"
        for other in imports_of(path, run_time_only=True):
            if not other.startswith("router.") or other == module:
                continue
            same_package = other.split(".")[:2] == module.split(".")[:2]
            if layer(other) > own or (layer(other) == own and not same_package and own not in {0, 2, 3, 6, 8}):
                wrong.append(f"{module} -> {other}")
    assert sorted(set(wrong)) == []


def test_the_router_process_loads_nothing_else() -> None:
    program = (
        "import sys, router.daemon\n"
        "from importlib.metadata import packages_distributions\n"
        "print('\\n'.join(sorted({m.split('.')[0] for m in sys.modules} & set(packages_distributions()))))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    loaded = {name for name in found.split() if not name.startswith(("_", "__editable"))}
    assert loaded - ALLOWED_IN_ROUTER == set()
    assert "uvloop" in loaded


def test_the_client_loads_neither_an_event_loop_nor_the_router() -> None:
    program = "import sys, router.client; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    loaded = set(found.split())
    assert not loaded & {"uvloop", "structlog", "aiohttp", "httptools", "ringbuffer", "zmq.asyncio"}
    of_router = {name for name in loaded if name.split(".")[0] == "router" and not name.startswith("router.client")}
    assert of_router == {"router", "router.stamps"}


@pytest.mark.parametrize("module", PURE_MODULES)
def test_pure_modules_have_no_clock_and_no_io(module: str) -> None:
    path = ROOT / (module.replace(".", "/") + ".py")
    assert not imports_of(path) & {"asyncio", "time", "socket", "os", "logging", "structlog", "uvloop"}


@pytest.mark.parametrize("path", PATH_MODULES, ids=lambda p: p.name)
def test_nothing_blocks_or_logs_on_the_path(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    banned = r"\b(structlog|logging|subprocess|time\.time\(|open\(|print\(|getaddrinfo|time\.sleep|threading)"
    assert not re.search(banned, text), f"{path.name} uses {re.search(banned, text)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_fit_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{path.name}: {node.name} has {lines} lines"


def test_the_map_names_modules_that_exist() -> None:
    text = (ROOT / "router" / "__init__.py").read_text(encoding="utf-8")
    named = re.findall(r":mod:`(router[.\w]*)`", text)
    assert len(named) > 10
    for module in named:
        base = ROOT / module.replace(".", "/")
        assert base.with_suffix(".py").exists() or (base / "__init__.py").exists(), module


def test_the_map_names_every_module_at_the_top() -> None:
    text = (ROOT / "router" / "__init__.py").read_text(encoding="utf-8")
    for path in (ROOT / "router").iterdir():
        is_module = path.suffix == ".py" or (path / "__init__.py").exists()
        if is_module and not path.name.startswith("__"):
            assert f":mod:`router.{path.stem}" in text, f"router/{path.name} is not on the map"


def test_struct_packs_no_live_word() -> None:
    """``pack_into`` zeroes before it writes: a reader would see zeros that were never stored."""
    for path in SOURCES:
        assert "pack_into" not in path.read_text(encoding="utf-8"), path


WALL_CLOCK = {
    "router.ingress.server": "when the models were listed first, as OpenAI's API wants it",
    "router.cli": "commands show times of day",
    "router.observer": "its journal has times of day, from the anchor in the segments",
    "router.log": "a line of the log has one",
    "router.embedded": "an id of its own demonstration",
    "router.caches.calls": "entries of the store are as old as they are over lives of the machine",
    "router.caches.intake": "how old tools are that a keeper of another life may have published",
    "router.keep": "ages of what it stores and publishes, over lives of the machine",
}
"""Who may ask for the time of day. Nobody else: when the clock of the machine jumps, nothing that runs may notice."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_interval_is_measured_by_the_time_of_day(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if any(module == name or module.startswith(f"{name}.") for name in WALL_CLOCK) or module.startswith("ringbuffer"):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    of_time = {"time", "time_ns", "gmtime", "localtime", "clock_gettime", "clock_gettime_ns"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in {"time", "datetime"}:
            wrong = {name.name for name in node.names} & (of_time | {"datetime", "date"})
            assert not wrong, f"{module} imports {wrong} at line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
            assert node.attr not in of_time, f"{module} calls time.{node.attr} at line {node.lineno}"
