"""The live page of ``ringrouter top``: asks the observer every second and shows what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import Footer, Static

from router.cli.top_hosts import host_states
from router.cli.top_tables import Table, covered, headline, printable, tables, text_rows
from router.observer import client
from router.observer.client import ObserverError
from router.observer.state import WINDOWS_S, State

EVERY_S: Final = 1.0
WIDE_COLUMNS: Final = 168
"""From here on metrics and stages stand side by side."""


class Page(App[None]):
    """The page; ``first`` is the state that it begins with, ``places`` where the rings of routers may be."""

    CSS = """
    #headline { height: auto; padding: 0 1; }
    .pair { layout: vertical; height: auto; }
    .-wide .pair { layout: horizontal; }
    .-wide .pair Static { width: 1fr; }
    .table { height: auto; padding: 0 1; margin-bottom: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "slice(1)", "next tag"),
        Binding("S", "slice(-1)", "previous tag"),
        Binding("w", "window", "window"),
        Binding("space", "pause", "pause"),
        Binding("q", "quit", "quit"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(
        self, address: str, first: State, window_s: float | None, by: str, places: Sequence[Path] = ()
    ) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE_COLUMNS, "-wide")]
        self._address = address
        self._state = first
        self._places = places
        self._hosts = host_states(first.sources, places)
        self._window_s = window_s or first.window_s
        self._by = by or (first.slices.by if first.slices is not None else "")
        self._trouble = ""
        self._paused = False
        self._asking = asyncio.Lock()

    def compose(self) -> ComposeResult:
        """Lay the page out; what stands where follows from the state."""
        yield Static(id="headline")
        with VerticalScroll():
            with Container(classes="pair"):
                yield Static(classes="table", id="table0")
                yield Static(classes="table", id="table1")
            for position in range(2, 6):
                yield Static(classes="table", id=f"table{position}")
        yield Footer()

    def on_mount(self) -> None:
        """Show the first state and ask for the next ones."""
        self._show()
        self.set_interval(EVERY_S, self._tick)

    async def _tick(self) -> None:
        if not self._paused and not self._asking.locked():
            await self._ask()

    async def _ask(self) -> None:
        async with self._asking:
            try:
                self._state = await asyncio.to_thread(client.state, self._address, window_s=self._window_s, by=self._by)
                self._trouble = ""
            except ObserverError as error:
                self._trouble = str(error)
            self._hosts = host_states(self._state.sources, self._places)
        self._show()

    def _show(self) -> None:
        self.query_one("#headline", Static).update(self._headline())
        found = tables(self._state, self._hosts)
        for position in range(6):
            content = _table(found[position]) if position < len(found) else Text()
            place = self.query_one(f"#table{position}", Static)
            place.display = position < len(found)
            place.update(content)

    def _headline(self) -> Text:
        clock = datetime.fromtimestamp(self._state.wall_ns / 1e9).strftime("%H:%M:%S")
        text = Text(no_wrap=False)
        text.append(f"{client.shown(self._address)}   {covered(self._state)}   {clock}", "bold")
        text.append("   paused" if self._paused else "", "reverse")
        if self._trouble:
            text.append(f"\n! {self._trouble}; shown is what it said last", "bold red")
        for line in headline(self._state, self._hosts):
            text.append(f"\n{printable(line)}", "yellow" if line.startswith("!") else "")
        return text

    async def action_slice(self, step: int) -> None:
        """Go to the next or the previous tag to slice by."""
        names = self._state.slice_names
        if names:
            at = names.index(self._by) if self._by in names else -step
            self._by = names[(at + step) % len(names)]
            await self._ask()

    async def action_window(self) -> None:
        """Go to the next longer window, from the longest to the shortest."""
        at = WINDOWS_S.index(self._window_s) if self._window_s in WINDOWS_S else 0
        self._window_s = WINDOWS_S[(at + 1) % len(WINDOWS_S)]
        await self._ask()

    def action_pause(self) -> None:
        """Hold the page still, or go on."""
        self._paused = not self._paused
        self._show()


def _table(table: Table) -> Text:
    heads, *rows = text_rows(table)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{printable(table.title)}\n", "bold cyan")
    text.append(heads, "dim")
    for row in rows:
        text.append(f"\n{row}")
    return text
