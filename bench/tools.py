"""What tools cost that the router fills into requests: ``python -m bench.tools``.

Microseconds of this process for each step, the median of many rounds: the usual splice (an array that was seen
before), the first splice of an array, the look at a request that names none, a new publication, and the choice of the
nearest. Bodies are real chats of several lengths; a schema is about 400 bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter_ns
from typing import Any

from bench import machine
from router import native
from router.caches import published
from router.caches.published import PublishedTool, PublishedTools, Subscription, publish
from router.caches.selection import nearest
from router.caches.tools import MARK, ToolRegistry, replace_part
from router.messages import decode_body
from router.telemetry.records import Endpoint

TOOL_COUNTS = (1, 10, 50, 200)
BODY_BYTES = (1_000, 8_000, 64_000)
ROUNDS = 2_000
SPLICE_US_MAX = 5.0
"""What filling 50 tools in may cost."""
DIMENSIONS = 384


def tools(count: int, dimensions: int = DIMENSIONS) -> PublishedTools:
    """Return so many tools with vectors."""
    dice = random.Random(1)
    made = []
    for number in range(count):
        properties = {f"parameter_{i}": {"type": "string", "description": "What it is."} for i in range(4)}
        function = {
            "name": f"source__tool_{number:04}",
            "description": "Does one thing of many, and does it well.",
            "parameters": {"type": "object", "properties": properties, "required": ["parameter_0"]},
        }
        body = json.dumps({"type": "function", "function": function}, separators=(",", ":")).encode()
        vector = struct.pack(f"<{dimensions}f", *(dice.gauss(0, 0.05) for _ in range(dimensions)))
        made.append(PublishedTool(f"source.tool_{number:04}", body, vector))
    return PublishedTools([], made, "model")


def chat(size: int, entry: dict[str, Any] | None) -> bytes:
    """Return a chat of about so many bytes."""
    text = "The quick brown fox jumps over the lazy dog. " * (size // 45)
    body: dict[str, Any] = {"model": "m", "stream": True, "messages": [{"role": "user", "content": text}]}
    return json.dumps(body | ({"tools": [entry]} if entry else {})).encode()


def timed_us(step: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Return the median time of a step in microseconds, less that of an empty one."""

    def run(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(rounds):
            begin = perf_counter_ns()
            call()
            times.append(perf_counter_ns() - begin)
        return median(times)

    return (run(step) - run(lambda: None)) / 1000


def splice_us(count: int, size: int) -> float:
    """Return what it takes to fill tools into a request that has been decoded, as the router does."""
    registry = ToolRegistry(tools(count), {})
    body = chat(size, {"type": "ringrouter", "names": ["source.*"]})
    fields: Any = decode_body(Endpoint.CHAT, body)

    def step() -> None:
        if MARK in (array := bytes(fields.tools)):
            spliced = registry.splice(array)
            assert spliced is not None
            replace_part(body, fields.tools, "tools", spliced.array)

    return timed_us(step)


def first_us(count: int) -> float:
    """Return what the first splice of an array takes."""
    registry = ToolRegistry(tools(count), {})
    entry = {"type": "ringrouter", "names": ["source.*"]}
    arrays = iter([json.dumps([entry, {"number": number}]) for number in range(300)])
    return timed_us(lambda: registry.splice(next(arrays).encode()), 150)


def publication_us(count: int) -> float:
    """Return what a new publication takes of the router's loop: read, checked and understood."""
    with TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory) / "keep.tools"
        publish(path, published.TOOLS, tools(count))

        def step() -> None:
            value = Subscription(path, published.TOOLS, PublishedTools).poll()
            assert value is not None
            ToolRegistry(value, {})

        return timed_us(step, 50)


def main() -> int:
    """Measure and print; the exit status is 1 when 50 tools cost more than they may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args()
    splices = {count: {size: splice_us(count, size) for size in BODY_BYTES} for count in TOOL_COUNTS}
    others = {
        "the first splice of an array, 50 tools": first_us(50),
        "a new publication, 50 tools": publication_us(50),
        "a new publication, 1,000 tools": publication_us(1000),
        "the nearest 8 of 50 tools": _nearest_us(50),
        "the nearest 8 of 1,000 tools": _nearest_us(1000),
    }
    worst = max(splices[50].values())
    if args.json:
        print(
            json.dumps(
                {"machine": machine.facts(), "splice_us": splices, "others_us": others, "native": native.BACKEND}
            )
        )
        return int(worst > SPLICE_US_MAX)
    print("filled in, us        " + "".join(f"{size:>12,} bytes" for size in BODY_BYTES))
    for count, row in splices.items():
        print(f"{count:>5} tools          " + "".join(f"{us:>18.2f}" for us in row.values()))
    for name, us in others.items():
        print(f"{name:<48}{us:>12.2f} us")
    print(f"50 tools: {worst:.2f} us at most, {SPLICE_US_MAX:g} are allowed; native code: {native.BACKEND}")
    return int(worst > SPLICE_US_MAX)


def _nearest_us(count: int) -> float:
    value = tools(count)
    query = value.tools[0].vector
    return timed_us(lambda: nearest(query, value.tools, 8), 200)


if __name__ == "__main__":
    sys.exit(main())
