"""An MCP server of an older version of the protocol, over stdio, without any SDK: what it says is scripted by a file.

``python -m tests.support.old_mcp_server FILE``. FILE is JSON: ``tools`` (as ``tools/list`` returns them), and ``mode``:
``ok``, ``hang`` (answers nothing), ``garbage``, ``error`` (an error for ``tools/list``), ``pages`` (one tool a page),
``endless`` (pages without end). When it changes, the server sends the notification ``list_changed``.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

LOOK_S = 0.02
VERSION = "2025-06-18"


def send(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **value}) + "\n")
    sys.stdout.flush()


def watch(path: Path) -> None:
    before = path.read_bytes()
    while True:
        time.sleep(LOOK_S)
        now = path.read_bytes()
        if now != before:
            before = now
            send({"method": "notifications/tools/list_changed"})


def listed(script: dict[str, Any], cursor: str | None) -> dict[str, Any]:
    tools, mode = script["tools"], script["mode"]
    if mode == "endless":
        return {"tools": tools, "nextCursor": "more"}
    if mode != "pages":
        return {"tools": tools}
    at = int(cursor or 0)
    return {"tools": tools[at : at + 1], **({"nextCursor": str(at + 1)} if at + 1 < len(tools) else {})}


def main() -> None:
    path = Path(sys.argv[1])
    threading.Thread(target=watch, args=(path,), daemon=True).start()
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        script = json.loads(path.read_text(encoding="utf-8"))
        method, request_id = message["method"], message["id"]
        if script["mode"] == "hang":
            continue
        if script["mode"] == "garbage":
            sys.stdout.write("this is no JSON\n")
            sys.stdout.flush()
            continue
        if method == "initialize":
            info = {"name": "old", "version": "1"}
            capabilities = {"tools": {"listChanged": True}}
            send(
                {
                    "id": request_id,
                    "result": {"protocolVersion": VERSION, "capabilities": capabilities, "serverInfo": info},
                }
            )
        elif method == "tools/list" and script["mode"] == "error":
            send({"id": request_id, "error": {"code": -32603, "message": "no tools today"}})
        elif method == "tools/list":
            send({"id": request_id, "result": listed(script, (message.get("params") or {}).get("cursor"))})
        elif method == "ping":
            send({"id": request_id, "result": {}})
        else:
            send({"id": request_id, "error": {"code": -32601, "message": f"no method {method}"}})


if __name__ == "__main__":
    main()
