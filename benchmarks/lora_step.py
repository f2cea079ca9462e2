"""One LoRA training step of a group of clients: as a batch, one by one, and plainly with peft.

    OMP_NUM_THREADS=1 python benchmarks/lora_step.py --out lora_step.json

Random weights in the shape of the packaged MiniLM, or of any config.json (only shapes matter for
time); r 8 on peft's default modules, a classifier of two classes, batch 16, SGD. The ways alternate
in one process, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fl_core.backbones.language import Language, LanguageModel, load_language, prepare_language
from fl_core.federation import FedAvg
from fl_core.learners.lora import LoRA
from fl_core.local import Problem, train_group
from fl_core.optim import SGD
from fl_core.seeds import generator
from fl_core.types import Task
from fl_core.work import Moment, Training, plan_work
from scenarios.data.catalogue import PACKAGED_LANGUAGE_MODELS

CLASSES = ("negative", "positive")


def main() -> None:
    parser = argparse.ArgumentParser(description="one LoRA training step of a group, three ways")
    parser.add_argument("--model", default="minilm", help="packaged, or a folder with config.json")
    parser.add_argument("--groups", nargs="*", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--lengths", nargs="*", type=int, default=[32, 64])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--top-layers", type=int)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [row for length in options.lengths for row in measure(options, length)]
    found = {"machine": machine(options.device), "rows": rows}
    for row in rows:
        print(
            f"length {row['length']:4d}  group {row['group']:3d}: "
            f"{1e3 * row['grouped_s']:8.1f} ms a client, one by one "
            f"{1e3 * row['alone_s']:8.1f} ms: {row['alone_s'] / row['grouped_s']:.2f} times; "
            f"peft {1e3 * row['peft_s']:8.1f} ms"
        )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


def measure(options: argparse.Namespace, length: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        spec = LanguageModel(
            model=options.model,
            pretrained="random",
            precision=options.precision,
            max_length=length,
        )
        prepared = prepare_language(spec, Path(folder), PACKAGED_LANGUAGE_MODELS)
        backbone = load_language(prepared, options.device)
        problem = make_problem(backbone, options, max(options.groups))
        plain = peft_step(backbone, problem, options)
        rows = []
        for group in options.groups:
            ways: dict[str, Callable[[], None]] = {
                "grouped_s": lambda g=group: step(problem, options, range(g)),  # type: ignore[misc]
                "alone_s": lambda: step(problem, options, [0]),
                "peft_s": plain,
            }
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.repeats + 1):
                for name, way in ways.items():
                    times[name].append(seconds(way, options.device))
            medians = {name: statistics.median(found[1:]) for name, found in times.items()}
            medians["grouped_s"] /= group
            rows.append({"length": length, "group": group, **medians})
        return rows


def make_problem(backbone: Language, options: argparse.Namespace, clients: int) -> Problem:
    """Random tokens, as many as the model reads at most."""
    learner = LoRA(dropout=0.0, top_layers=options.top_layers)
    draws = generator(0, "tokens")
    shape = clients * options.batch, backbone.max_length
    vocabulary = json.loads((backbone.weights_folder / "config.json").read_text())["vocab_size"]
    ids = torch.randint(vocabulary, shape, generator=draws, dtype=torch.int32)
    inputs = {"token_ids": ids.to(backbone.device)}
    for kind in learner.inputs[1:]:
        inputs[kind] = torch.randn(*shape, backbone.width, generator=draws).to(backbone.device)
    labels = torch.randint(2, shape[:1], generator=draws).to(backbone.device)
    frozen = learner.prepare(backbone, Task(CLASSES))
    return Problem(learner, frozen, learner.init(frozen, generator(0, "init")), inputs, labels)


def step(problem: Problem, options: argparse.Namespace, clients: Any) -> None:
    training = Training(SGD(lr=0.01), local_steps=1, batch_size=options.batch)
    shards = [torch.arange(c * options.batch, (c + 1) * options.batch) for c in clients]
    moment = Moment(0, 1, 0)
    work = plan_work(training, moment, list(clients), shards)
    train_group(problem, FedAvg(), training, problem.initial, {}, work, moment)


def peft_step(
    backbone: Language, problem: Problem, options: argparse.Namespace
) -> Callable[[], None]:
    """The same step of one client by autograd through peft's own model, as a trainer takes it."""
    from peft import LoraConfig, get_peft_model

    module: Any = backbone.build()
    config = LoraConfig(r=8, lora_alpha=16, target_modules=list(backbone.lora_modules))
    model = get_peft_model(module, config)
    head = torch.nn.Linear(backbone.width, 2, device=backbone.device, dtype=backbone.dtype)
    trained = [p for p in model.parameters() if p.requires_grad] + list(head.parameters())
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=5e-4)
    ids = problem.inputs["token_ids"][: options.batch].long()
    labels = problem.labels[: options.batch]
    body = model.base_model.model
    body = body.base_model if backbone.causal else body

    def run() -> None:
        hidden = body(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        loss = torch.nn.functional.cross_entropy(head(hidden.mean(dim=1)).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def seconds(run: Callable[[], None], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def machine(device: str) -> dict[str, Any]:
    name = platform.processor() if device == "cpu" else torch.cuda.get_device_name()
    return {
        "device": name,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
