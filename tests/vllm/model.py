"""A Llama of 25 million parameters without weights, and a tokenizer of 512 words: what `--load-format dummy` needs."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = 512
CONTEXT = 2048
_UNKNOWN, _BEGIN, _END = "<unk>", "<s>", "</s>"

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": WORDS,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def write_model(folder: Path) -> Path:
    """The model's folder, as the Hugging Face hub has them."""
    folder.mkdir(parents=True)
    special = (_UNKNOWN, _BEGIN, _END)
    words = [*special, *(f"w{number}" for number in range(WORDS - len(special)))]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": number,
                "content": word,
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for number, word in enumerate(special)
        ],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": _UNKNOWN,
        },
    }
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": _UNKNOWN,
        "bos_token": _BEGIN,
        "eos_token": _END,
        "model_max_length": CONTEXT,
    }
    for name, content in (
        ("config.json", _CONFIG),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", options),
        ("generation_config.json", {"bos_token_id": 1, "eos_token_id": 2}),
    ):
        (folder / name).write_text(json.dumps(content))
    return folder
