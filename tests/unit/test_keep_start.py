"""Where the keeper is started, and what is said where it cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from router.config import needs_keeper, parse
from router.embedded.plan import user_plan
from router.errors import ConfigError
from tests.support.waiting import free_port

HOST = '[[hosts]]\nname = "h"\nurl = "http://127.0.0.1:1"\nmodels = ["m"]\n'
WITHOUT = "import sys; sys.modules[{!r}] = None; from router import cli; sys.exit(cli.main({!r}))"


def write(directory: Path, cache: str) -> Path:
    path = directory / "router.toml"
    path.write_text(
        f'version = 1\n[listen]\nhttp = "127.0.0.1:{free_port()}"\nrun_dir = "{directory}/run"\n'
        f'[cache]\ndir = "{directory}/cache"\n{cache}{HOST}',
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize("section", ["embeddings", "nearest"])
def test_run_starts_a_keeper_where_there_is_something_to_keep(tmp_path: Path, section: str) -> None:
    plan = user_plan(write(tmp_path, f"[cache.{section}]\nenabled = true\n"))
    assert plan.keeper_command is not None
    assert plan.keeper_command[-3:-1] == ["keep", "--config"]
    assert user_plan(write(tmp_path, "")).keeper_command is None


@pytest.mark.parametrize(
    ("cache", "module", "arguments", "said"),
    [
        ("", "-", ["keep"], "there is nothing to keep"),
        ("[cache.embeddings]\nenabled = true\n", "lmdb", ["keep"], "keep needs lmdb: pip install 'ringrouter[keep]'"),
        ("[cache.nearest]\nenabled = true\n", "numpy", ["keep"], "keep needs numpy: pip install 'ringrouter[keep]'"),
        ("[cache.embeddings]\nenabled = true\n", "lmdb", ["serve"], "cache.embeddings needs lmdb: pip install"),
        ("", "lmdb", ["cache", "stats"], "cache stats needs lmdb: pip install 'ringrouter[keep]'"),
    ],
)
def test_what_is_missing_is_named_in_one_line(
    tmp_path: Path, cache: str, module: str, arguments: list[str], said: str
) -> None:
    program = WITHOUT.format(module, [*arguments, "--config", str(write(tmp_path, cache))])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[cache.embeddings]\nring_slots = 100\n", "cache.embeddings.ring_slots = 100: expected a power of two"),
        ('[cache.embeddings]\nmodels = ["a", "a"]\n', 'cache.embeddings.models[1] = "a": expected values that differ'),
        (
            '[cache.embeddings]\nmodels = ["a"]\nrevisions = { b = "1" }\n',
            "cache.embeddings.revisions.b: expected a model of cache.embeddings.models",
        ),
        ("[cache.embeddings]\nstore_bytes = 1000\n", "cache.embeddings.store_bytes = 1000: expected"),
        ("[cache.nearest]\nk = 3\n", "cache.nearest.k"),
    ],
)
def test_sections_are_checked_by_key(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(f"version = 1\n{text}")
    assert said in str(raised.value)


def test_nothing_is_kept_by_default() -> None:
    assert not needs_keeper(parse("version = 1\n").cache)
