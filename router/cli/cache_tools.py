"""``ringrouter cache tools``: the tools that requests can name, and how their sources are doing.

It reads what the keeper has published, which is what routers fill into requests, whether or not a keeper runs now.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import msgspec

from router import config
from router.caches import published
from router.caches.published import PublishedError, PublishedSource, PublishedTools, Subscription
from router.cli import EXIT_FAILED, EXIT_OK, fail
from router.cli.keeper_client import KeeperClient
from router.config.caches import published_tools
from router.telemetry.units import duration


def run(args: argparse.Namespace, settings: config.Config, schema: int) -> int:
    """Print them; with ``--refresh`` the keeper is told to ask all sources again."""
    run_dir: Path = args.run_dir or config.rings_dir(settings)
    if args.refresh:
        with KeeperClient(config.keeper_socket(settings, run_dir)) as keeper:
            keeper.ask("tools.refresh")
        print("all sources are asked again")
        return EXIT_OK
    subscription = Subscription(published_tools(run_dir), published.TOOLS, PublishedTools)
    try:
        value = subscription.poll()
    except PublishedError as error:
        return fail(error)
    if value is None:
        return fail(f"no tools are published in {run_dir}: does ringrouter keep run, with [[cache.tools.sources]]?")
    if args.json:
        print(msgspec.json.encode({"schema": schema, "version": subscription.version, **_facts(value)}).decode())
    else:
        _print(value)
    return EXIT_OK if all(source.state == "ok" and not source.refused for source in value.sources) else EXIT_FAILED


def _facts(value: PublishedTools) -> dict[str, Any]:
    sources = [{**msgspec.structs.asdict(source), "age_s": age_s(source)} for source in value.sources]
    tools = [
        {"name": tool.name, "bytes": len(tool.body), "has_vector": bool(tool.vector), **_function(tool.body)}
        for tool in value.tools
    ]
    return {"sources": sources, "tools": tools}


def _function(body: bytes) -> dict[str, Any]:
    function = msgspec.json.decode(body)["function"]
    return {"function_name": function["name"], "description": function.get("description", "")}


def age_s(source: PublishedSource) -> float | None:
    """Return how old a source's tools are, ``None`` where it never had any."""
    return max(time.time() - source.fetched_wall_ns / 1e9, 0.0) if source.fetched_wall_ns else None


def _print(value: PublishedTools) -> None:
    for source in value.sources:
        age = age_s(source)
        when = "never fetched" if age is None else f"fetched {duration(int(age * 1e9))} ago"
        print(f"{source.name:<20} {source.transport:<6} {source.state:<7} {source.tool_count:>5} tools, {when}")
        if source.error:
            print(f"    {source.error}")
        for each in source.refused:
            print(f"    refused {each}")
    for tool in value.tools:
        print(f"  {tool.name:<40} {_function(tool.body)['function_name']:<40} {len(tool.body):>7,} bytes")
