"""The native code under the address and undefined-behaviour sanitizers, on damaged streams and heads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.waiting import shared_memory_directory

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
SECONDS = 60
PROGRAM = """
import importlib.util, random, sys, time
from tests.captures import capture, stream_names
from tests.support.stream_damage import damage
def load(name):
    spec = importlib.util.spec_from_file_location(f"router.{name}", f"{sys.argv[1]}/{name}.so")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
from router.hosts.scanner import StreamScanner
from router.http1 import ChunkedDecoder
module, steps = load("_scan"), load("_steps")
probe = StreamScanner(ChunkedDecoder())
feed = module.Scan(probe).feed
def scan(data, *switches):
    return feed(StreamScanner(ChunkedDecoder(), *switches), data)
rng = random.Random(int(sys.argv[3]))
until = time.monotonic() + float(sys.argv[2])
taken = rounds = 0
while time.monotonic() < until:
    rounds += 1
    piece = b""
    data = capture(rng.choice(stream_names())).framed
    if rounds % 8:
        data = damage(data, rng)
    begin = rng.randrange(len(data) + 1) if rounds % 3 == 0 else 0
    switches = [rng.random() < 0.5 for _ in range(3)]
    found = scan(data[begin : begin + rng.choice((50, 300, 5000, 1 << 20))], *switches)
    while found is None and b"\\r\\n" in data:  # and chunk by chunk, which is taken more often
        at = data.find(b"\\n\\n\\r\\n")
        piece, data = (data[: at + 4], data[at + 4 :]) if at >= 0 else (data, b"")
        taken += scan(piece, True, True, True) is not None
        prefix, suffix = sorted(rng.randrange(len(piece) + 1) for _ in range(2))
        module.same_token(piece, piece[:prefix], piece[suffix:])
    body = b'{"model":"m","messages":[%b],"x":0}' % piece[6:-4]
    module.split_body(damage(body, rng) if rounds % 2 else body)
    usage = b'{"prompt_tokens":20,"completion_tokens":4294967295,"prompt_tokens_details":{"cached_tokens":%d}}' % rounds
    module.pack_usage(damage(usage, rng) if rounds % 4 else usage)
    head = capture(rng.choice(stream_names())).head
    head = damage(head, rng) if rounds % 2 else head
    steps.split_head(head, rng.randrange(-1, len(head) + 9), rng.choice((0, 7, 100, 1 << 16)))
    steps.first_byte(head[: rng.randrange(2)])
    steps.tcp_info(rng.choice((-1, 0, 1 << 20)))
    number, text = rng.choice("QIHBf"), f"{rng.randrange(1, 90)}s"
    fields = [("real", number, rng.randrange(60)), ("__doc__", text, rng.randrange(60))]
    source = rng.choice((rng.getrandbits(rng.randrange(90)), -3, 1.5, type("S", (), {"real": 1, "__doc__": head})()))
    try:
        steps.Packer(rng.randrange(1, 70), fields[: rng.randrange(3)]).pack(source)
    except (ValueError, OverflowError, TypeError):
        pass
print(rounds, taken)
"""


LOADING = """
import importlib.util, sys
import pytest, router
def load(package, name):
    spec = importlib.util.spec_from_file_location(f"{package}.{name}", f"{sys.argv[1]}/{name}.so")
    module = sys.modules[f"{package}.{name}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
load("ringbuffer", "_words")
load("router", "_steps")
load("router", "_relay")
load("router", "_answer")
load("router", "_dispatch")
load("router", "_scan")
load("router", "_intake")
import router.native
assert router.native.answer.__file__.startswith(sys.argv[1])
assert router.native.relay.__file__.startswith(sys.argv[1])
assert router.native.steps.__file__.startswith(sys.argv[1])
assert router.native.dispatch.__file__.startswith(sys.argv[1])
assert router.native.intake.__file__.startswith(sys.argv[1])
"""
RELAY_PROGRAM = f"""{LOADING}
names = ("answers", "relay", "dispatch", "packing", "mould", "picking", "server_timing", "shapes")
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *(f"tests/unit/test_{{name}}.py" for name in names)]))
"""
MIXED_STEPS = 60_000
MIXED_PROGRAM = f"""{LOADING}
import runpy
del sys.argv[1]
runpy.run_module("tests.support.mixed_load", run_name="__main__")
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The native code built with sanitizers, and the environment in which an interpreter can load it."""
    directory = tmp_path_factory.mktemp("sanitized")
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    runtime = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if not Path(runtime.stdout.strip()).is_absolute():
        pytest.skip("gcc has no address sanitizer here")
    flags = ["-std=c11", "-g", "-O1", "-fPIC", "-shared", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    include = f"-I{sysconfig.get_paths()['include']}"
    native = [f"router/_{name}.c" for name in ("scan", "steps", "relay", "dispatch", "intake", "answer")]
    for source in (*native, "ringbuffer/_words.c"):
        output = directory / f"{Path(source).stem}.so"
        subprocess.run(
            [compiler, *flags, "-DPy_LIMITED_API=0x030b0000", include, ROOT / source, "-o", output], check=True
        )
    environment = os.environ | {
        "LD_PRELOAD": runtime.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter keeps what it has until its end
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(ROOT),
    }
    return directory, environment


def test_relay_records_and_moulds_touch_no_byte_out_of_bounds(sanitized: tuple[Path, dict[str, str]]) -> None:
    directory, environment = sanitized
    done = subprocess.run(
        [sys.executable, "-c", RELAY_PROGRAM, str(directory)],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert re.match(r"\.+ ", done.stdout), "every test ran and passed, none was skipped"


def test_no_byte_out_of_bounds(sanitized: tuple[Path, dict[str, str]]) -> None:
    directory, environment = sanitized
    seed = str(int.from_bytes(os.urandom(4), "big"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory), str(SECONDS), seed],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}:\n{done.stderr[-4000:]}"
    rounds, taken = map(int, done.stdout.split())
    assert rounds > 100
    assert taken > 100, "the scan must have come far into many reads"


def test_a_mix_of_all_that_happens_touches_no_byte_out_of_bounds(sanitized: tuple[Path, dict[str, str]]) -> None:
    directory, environment = sanitized
    seed = str(int.from_bytes(os.urandom(4), "big"))
    with shared_memory_directory() as rings:
        done = subprocess.run(
            [sys.executable, "-c", MIXED_PROGRAM, str(directory), seed, str(MIXED_STEPS), str(rings)],
            env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}:\n{done.stderr[-4000:]}"
    found = json.loads(done.stdout)
    assert found["backend"] == "c"
    assert not found["faults"], f"seed {seed}"
    assert not any(value for left in found["left"] for value in left.values()), f"seed {seed}: {found['left']}"
