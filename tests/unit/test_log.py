"""Logging never blocks the loop and never repeats what an exception quotes."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import sys, time
from router.config import Log
from router.log import set_up, log_unhandled
log = set_up(Log(format="json"))
count = int(sys.argv[1])
start = time.monotonic()
for number in range(count):
    log.info("x" * 1000, number=number)
took = time.monotonic() - start
print(took, flush=True)
try:
    raise ValueError("a prompt that a client sent")
except ValueError as error:
    log_unhandled(log, {"message": "in a callback", "exception": error})
"""


def test_a_reader_that_never_reads_stops_nobody() -> None:
    read_end, write_end = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "3000"], stdout=subprocess.PIPE, stderr=write_end, timeout=100, check=True
        )
    finally:
        os.close(write_end)
        os.close(read_end)
    assert float(done.stdout) < 5  # three megabytes into a pipe of 64 KiB that nobody reads


def test_messages_are_all_there_at_the_end() -> None:
    run = [sys.executable, "-c", PROGRAM, "20"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=100, check=True)
    lines = done.stderr.splitlines()
    assert [line for line in lines if '"number": 19' in line]
    assert len(lines) == 21


def test_an_escaped_exception_is_told_without_its_text() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "0"], capture_output=True, text=True, timeout=100, check=True)
    assert '"type": "ValueError"' in done.stderr
    assert "a prompt that a client sent" not in done.stderr
