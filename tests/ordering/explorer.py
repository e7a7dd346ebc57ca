"""Everything that a few short programs on shared words can do on a weakly ordered machine, tried exhaustively.

The machine is weaker than any processor Python runs on. A store waits in a buffer of its thread, one buffer a word: its
own thread sees it at once, the others when it leaves, and buffers empty in any order. A load, too, may happen before
earlier ones, and before it is known whether the program comes that far (``Require``). What keeps things in order:

- one word: a thread's accesses to it stay as they are written, but a load may take what still waits in the buffer
- a store of a register comes after the load that filled it
- a release store comes after everything before it, an acquire load before everything behind it
- a release fence: all before it come before the stores behind it; an acquire fence: the loads before it come before
  all behind it; a full fence: all before it come before all behind it

That is C11's release and acquire for one memory that all threads share, and no more: a control dependency orders
nothing, and no store is ordered before a load by anything but a full fence or a locked swap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Registers = Mapping[str, int]
FenceKind = Literal["acquire", "release", "full"]


@dataclass(frozen=True)
class Load:
    """Load a word into a register. ``sync`` is the letter of the edge that the order of this access belongs to."""

    register: str
    word: str
    acquire: bool = False
    sync: str = ""


@dataclass(frozen=True)
class Store:
    """Store a number, or a register, into a word."""

    word: str
    value: int | str
    release: bool = False
    sync: str = ""


@dataclass(frozen=True)
class Fence:
    """A fence."""

    kind: FenceKind
    sync: str = ""


@dataclass(frozen=True)
class Swap:
    """Load a word and store a number into it, in one step; ``locked``: nothing moves across it either way."""

    register: str
    word: str
    value: int
    locked: bool = False
    sync: str = ""


@dataclass(frozen=True)
class Require:
    """The thread comes to what is behind this only when ``holds`` does; executions in which it does not are dropped."""

    holds: Callable[[Registers], bool]


Step = Load | Store | Fence | Swap | Require
Threads = tuple[tuple[Step, ...], ...]
_Filled = tuple[tuple[str, int], ...]
"""Registers that are filled, as a value that can be compared."""


def weakenings(threads: Threads) -> Iterator[tuple[str, int, int, Threads]]:
    """Yield (letter, thread, step, the same threads without that one order) for every order that is named."""
    for thread_index, steps in enumerate(threads):
        for step_index, step in enumerate(steps):
            if isinstance(step, Require) or not step.sync:
                continue
            weaker = (*steps[:step_index], *_weakened(step), *steps[step_index + 1 :])
            mutant = (*threads[:thread_index], weaker, *threads[thread_index + 1 :])
            yield step.sync, thread_index, step_index, mutant


def _weakened(step: Load | Store | Fence | Swap) -> tuple[Step, ...]:
    if isinstance(step, Fence):
        return ()
    if isinstance(step, Swap):
        return (replace(step, locked=False),)
    return (replace(step, acquire=False) if isinstance(step, Load) else replace(step, release=False),)


class _State(NamedTuple):
    """Where an execution is: memory, and of each thread the steps done (as bits) and the registers filled."""

    memory: _Filled
    done: tuple[int, ...]
    registers: tuple[_Filled, ...]


def outcomes(threads: Threads, memory: Mapping[str, int]) -> Iterator[tuple[Registers, ...]]:
    """Yield the registers of all threads at the end of every execution, each different end once."""
    earlier = [_earlier_steps(steps) for steps in threads]
    complete = tuple((1 << len(steps)) - 1 for steps in threads)
    start = _State(tuple(sorted(memory.items())), (0,) * len(threads), ((),) * len(threads))
    seen, ends = {start}, set()
    pending = [start]
    while pending:
        state = pending.pop()
        if state.done == complete:
            ends.add(state.registers)
            continue
        for following in _successors(threads, earlier, state):
            if following not in seen:
                seen.add(following)
                pending.append(following)
    for end in ends:
        yield tuple(dict(each) for each in end)


def _successors(threads: Threads, earlier: list[list[int]], state: _State) -> Iterator[_State]:
    for thread, steps in enumerate(threads):
        done = state.done[thread]
        for at in range(len(steps)):
            if done >> at & 1 or earlier[thread][at] & ~done:
                continue
            result = _perform(steps, at, done, dict(state.memory), dict(state.registers[thread]))
            if result is not None:
                memory, registers = result
                yield _State(
                    memory,
                    (*state.done[:thread], done | 1 << at, *state.done[thread + 1 :]),
                    (*state.registers[:thread], registers, *state.registers[thread + 1 :]),
                )


def _perform(
    steps: Sequence[Step], at: int, done: int, memory: dict[str, int], registers: dict[str, int]
) -> tuple[_Filled, _Filled] | None:
    """Let one step of a thread happen now; return memory and registers, None if it cannot."""
    step = steps[at]
    if isinstance(step, Require) and not step.holds(registers):
        return None
    if isinstance(step, Store):
        memory[step.word] = _value(step, registers)
    elif isinstance(step, Swap):
        registers[step.register], memory[step.word] = memory[step.word], step.value
    elif isinstance(step, Load):
        waiting = _waiting_store(steps, at, done)
        if waiting is not None and waiting.value not in registers and isinstance(waiting.value, str):
            return None
        registers[step.register] = memory[step.word] if waiting is None else _value(waiting, registers)
    return tuple(sorted(memory.items())), tuple(sorted(registers.items()))


def _value(store: Store, registers: Registers) -> int:
    return store.value if isinstance(store.value, int) else registers[store.value]


def _waiting_store(steps: Sequence[Step], at: int, done: int) -> Store | None:
    """Return the thread's last store to the word of a load, if it is still in the buffer."""
    load = steps[at]
    for index in range(at - 1, -1, -1):
        step = steps[index]
        if isinstance(step, Store) and isinstance(load, Load) and step.word == load.word:
            return None if done >> index & 1 else step
    return None


def _earlier_steps(steps: Sequence[Step]) -> list[int]:
    """Return for each step the set, as bits, of those before it that must have happened."""
    return [sum(1 << before for before in range(at) if _is_ordered(steps, before, at)) for at in range(len(steps))]


def _is_ordered(steps: Sequence[Step], before: int, at: int) -> bool:
    first, then = steps[before], steps[at]
    if isinstance(then, Require) or isinstance(first, Require):
        return isinstance(then, Require)  # a check comes when all registers before it are known; it holds up nothing
    if isinstance(first, Fence) or isinstance(then, Fence):
        return _is_fenced(first, then)
    if (isinstance(then, Store) and then.release) or (isinstance(first, Load) and first.acquire):
        return True
    if (isinstance(then, Swap) and then.locked) or (isinstance(first, Swap) and first.locked):
        return True
    if first.word == then.word and not (isinstance(first, Store) and isinstance(then, Load)):
        return True
    return isinstance(first, Load) and isinstance(then, Store) and then.value == first.register


def _is_fenced(first: Step, then: Step) -> bool:
    if isinstance(first, Fence) and isinstance(then, Fence):
        return False
    if isinstance(then, Fence):
        return then.kind != "acquire" or isinstance(first, Load | Swap)
    assert isinstance(first, Fence)
    return first.kind != "release" or isinstance(then, Store | Swap)
