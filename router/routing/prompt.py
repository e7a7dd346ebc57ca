"""The beginning of a prompt as a chain of hashes, so that two prompts can be compared by where they part; pure.

The canonical prompt is the JSON of ``messages`` or ``prompt`` exactly as the client sent it. A host's prefix cache
works on tokens, but tokens follow from those bytes: as long as they are equal, so are the tokens, whatever the model
and its template. No tokenizer is needed, and a conversation whose next turn repeats the ones before, as every client
sends it, agrees in all bytes up to the end of the last turn. What differs only in spelling (spaces, the order of keys)
counts as different, which costs a cache hit and nothing else.

Block ``i`` covers bytes ``i * block_bytes`` up to the next multiple. Its hash is XXH3-64 of those bytes with the hash
of the block before as its seed, so that equal hashes mean equal beginnings, not just equal blocks. What is left over at
the end is no block.
"""

from __future__ import annotations

from typing import Final

from xxhash import xxh3_64_intdigest

_FIRST_SEED: Final = 0


def chain(prompt: bytes | memoryview, block_bytes: int, blocks_max: int) -> list[int]:
    """Return the chained hashes of the whole blocks of a prompt, the first ``blocks_max`` at most."""
    count = min(len(prompt) // block_bytes, blocks_max)
    seed = _FIRST_SEED
    blocks = []
    for start in range(0, count * block_bytes, block_bytes):
        seed = xxh3_64_intdigest(prompt[start : start + block_bytes], seed)
        blocks.append(seed)
    return blocks
