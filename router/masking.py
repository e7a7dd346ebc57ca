"""Takes out of a text what looks like a key: people paste keys where they do not belong, and errors are copied around;
pure.

Found are the forms in which services give keys out, and runs of characters that are as good as random. A name that
looks so too is left out as well: the error says where it stands.
"""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "(key, not shown)"
_GIVEN: Final = re.compile(
    r"(?<![A-Za-z0-9])"
    r"(?:(?:sk|rk|pk|xai|pplx|nvapi|glpat|xox[a-z])-|(?:sk|rk|pk|rr|hf|r8|gsk|gh[a-z]|github_pat)_|AKIA|AIza|eyJ)"
    r"[A-Za-z0-9_.+/=-]{12,}"
)
"""How keys begin: of OpenAI, Anthropic and others; of this router; of Hugging Face, GitHub, cloud providers; JWTs."""
_UUID: Final = re.compile(r"(?<![A-Za-z0-9-])[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}(?![A-Za-z0-9-])")
_IN_URL: Final = re.compile(r"(?<=://)[^/@\s\"']+(?=@)")
_RUN: Final = re.compile(r"(?<![A-Za-z0-9_-])(?<![A-Za-z0-9_.-]/)[A-Za-z0-9_+=-]{20,}")
"""What may be random; names of directories and files are shown as they are."""
_HEXADECIMAL: Final = re.compile(
    r"(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{24,}|(?=[0-9]*[A-F])(?=[A-F]*[0-9])[0-9A-F]{24,}"
)
"""As long as 96 bits: its digits stand together too often for the count of changes below to tell it."""
_UNBROKEN: Final = re.compile(r"[A-Za-z0-9]{16,}")
_KINDS: Final = re.compile(r"[a-z]+|[A-Z]+|[0-9]+")
_RUNS_OF_KIND_MIN: Final = 6
"""In 16 characters or more: `Qwen25Coder32BInstruct` has fewer digits between its letters than random ones have."""


def masked(text: str) -> str:
    """Return a text without what looks like a key."""
    for pattern in (_GIVEN, _UUID, _IN_URL):
        text = pattern.sub(MASK, text)
    return _RUN.sub(lambda found: MASK if _is_random(found[0]) else found[0], text)


def _is_random(run: str) -> bool:
    """Whether a run has an unbroken part that is hexadecimal, or whose letters and digits change as in a random one."""
    return _HEXADECIMAL.search(run) is not None or any(
        len(_KINDS.findall(part)) >= _RUNS_OF_KIND_MIN and any(map(str.isdigit, part)) and not part.isdigit()
        for part in _UNBROKEN.findall(run)
    )
