"""Answers of many clients' own models: written side by side, and by one model after the other.

    OMP_NUM_THREADS=1 python benchmarks/written_answers.py --clients 10 16 --rows 2 4 8

Random weights in the shape of a small LLaMA; r 8 on queries and values, prompts of 8 to 48 tokens,
answers of 16, which none ends before. What is timed is all of scoring: reading, the response's
likelihood, writing, exact match and ROUGE. Both ways alternate in one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fl_core.answers import AnswerScores, score_answers
from fl_core.backbones.language import Language, LanguageModel, load_language, prepare_language
from fl_core.learners.lora import LoRA
from fl_core.local import Problem, lane, stack
from fl_core.predict import score_group
from fl_core.seeds import generator
from fl_core.types import Params, Task

PROMPT, ANSWER, RESPONSE = 48, 16, 8
END = 0


def main() -> None:
    parser = argparse.ArgumentParser(description="answers side by side, and one after the other")
    parser.add_argument("--clients", nargs="*", type=int, default=[10, 16])
    parser.add_argument("--rows", nargs="*", type=int, default=[2, 4, 8], help="of each client")
    parser.add_argument("--widths", nargs="*", type=int, default=[64, 256])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for width in options.widths:
        with tempfile.TemporaryDirectory() as folder:
            backbone = small_model(Path(folder), width, options)
            for clients in options.clients:
                for rows in options.rows:
                    measure(backbone, clients, rows, options.repeats)


def small_model(folder: Path, width: int, options: argparse.Namespace) -> Language:
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    vocabulary = {f"w{number}": number for number in range(options.vocabulary)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))
    source = folder / "source"
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{END}").save_pretrained(source)
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": 4}
    shape |= {"num_hidden_layers": options.layers, "vocab_size": options.vocabulary}
    LlamaConfig(**shape, max_position_embeddings=256, pad_token_id=1).save_pretrained(source)
    spec = LanguageModel(model=str(source), pretrained="random", max_length=PROMPT)
    return load_language(prepare_language(spec, folder, {}))


def measure(backbone: Language, clients: int, rows: int, repeats: int) -> None:
    problem, models = make_problem(backbone, clients, rows)
    shards = list(torch.arange(clients * rows).split(rows))

    def in_turns() -> Sequence[AnswerScores]:
        return [score_answers(problem, lane(models, g), own) for g, own in enumerate(shards)]

    ways: dict[str, Callable[[], Any]] = {
        "in turns": in_turns,
        "side by side": lambda: score_group(problem, models, shards),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    facts = {"width": backbone.width, "clients": clients, "rows": rows}
    facts["times_faster"] = round(medians["in turns"] / medians["side by side"], 2)
    print(json.dumps(facts | {name: round(median, 3) for name, median in medians.items()}))


def make_problem(backbone: Language, clients: int, rows: int) -> tuple[Problem, Params]:
    """Random tokens, and adapters that all differ."""
    learner = LoRA(head="generation", max_new_tokens=ANSWER, dropout=0.0)
    draws, num = generator(0, "tokens"), clients * rows
    words = len(backbone.tokenizer)
    ids = torch.randint(2, words, (num, PROMPT), generator=draws, dtype=torch.int32)
    lengths = torch.randint(8, PROMPT + 1, (num, 1), generator=draws)
    ids[torch.arange(PROMPT) < PROMPT - lengths] = -1
    wanted = torch.randint(2, words, (num, RESPONSE), generator=draws, dtype=torch.int32)
    inputs = {"token_ids": ids, f"response_ids_{ANSWER}": wanted}
    frozen = learner.prepare(backbone, Task(("a", "b")))
    first = learner.init(frozen, generator(0, "init"))
    drawn = [
        {n: t + 0.05 * torch.randn(t.shape, generator=draws) for n, t in first.items()}
        for _ in range(clients)
    ]
    responses = dict.fromkeys(range(num), ("a wanted answer",))
    labels = torch.zeros(num, dtype=torch.int64)
    return Problem(learner, frozen, first, inputs, labels, responses=responses), stack(drawn)


if __name__ == "__main__":
    main()
