"""The tests of the rings with an extension that was built with the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
FLAGS = [
    "-std=c11", "-g", "-O1", "-fPIC", "-shared", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
    "-DPy_LIMITED_API=0x030b0000",
]  # fmt: skip
TESTS = ["tests/ringbuffer", "-m", "not long", "-k", "not plain", "-p", "no:faulthandler"]


def test_no_access_out_of_bounds_and_no_undefined_behaviour(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed (Debian package gcc)")
    found = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    runtime = found.stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("gcc has no address sanitizer here (Debian package libasan8)")
    package = tmp_path / "ringbuffer"
    shutil.copytree(ROOT / "ringbuffer", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    include = f"-I{sysconfig.get_paths()['include']}"
    library = package / "_words.abi3.so"
    subprocess.run([compiler, *FLAGS, include, str(package / "_words.c"), "-o", str(library)], check=True)
    environment = os.environ | {
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter keeps what it has until its end
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(tmp_path),
        "RINGBUFFER_BACKEND": "c",
        "RING_TEST_BACKENDS": "c",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", f"pythonpath={tmp_path} {ROOT}", *TESTS],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "ERROR: AddressSanitizer" not in done.stderr
    assert "runtime error" not in done.stderr
