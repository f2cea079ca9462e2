"""Seconds per client step of every CLIP learner beside CoOp's, and the multiply-adds behind them.

    OMP_NUM_THREADS=1 python benchmarks/learner_steps.py --model ViT-B-16 --batch 4 --out out.json

One client, one local step of ``train_group``, the code that runs in an actor; learners at their
defaults, random stored features. CoOp's step is timed in turn with each learner's, so that a busy
machine slows both; the shortest of the repeats counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fl_core.backbones.clip import Clip, load_clip, prepare_clip
from fl_core.backbones.clip_origin import OpenClip
from fl_core.backbones.union import gives
from fl_core.errors import ConfigError
from fl_core.federation import Exchange, FedAvg
from fl_core.learners import LEARNERS, CoOp, Learner
from fl_core.learners.base import TakesExperts
from fl_core.local import Problem, stack, train_group
from fl_core.optim import SGD
from fl_core.seeds import generator
from fl_core.types import Params, Task
from fl_core.work import Moment, Training, plan_work
from scenarios.data.catalogue import PACKAGED_BACKBONES

NAMES = (
    "goldfish, tiger shark, ostrich, house finch, jay, great grey owl, axolotl, tree frog, "
    "box turtle, Komodo dragon, king cobra, tarantula, peacock, macaw, toucan, black swan, koala, "
    "jellyfish, snail, hermit crab, flamingo, pelican, grey whale, sea lion"
)
CLASSES = tuple(name.strip() for name in NAMES.split(","))
TRAINING = Training(SGD(lr=0.002), local_steps=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="seconds per client step of every learner")
    parser.add_argument("--model", default="emoji_clip", help="packaged; others are random")
    parser.add_argument("--learners", nargs="*", help="names; all by default")
    parser.add_argument("--classes", type=int, default=len(CLASSES))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--patches", type=int, default=196)
    parser.add_argument("--depth", type=int, help="layers with prompts, where a learner has them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    machine = platform.processor() or platform.machine()
    result: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    result |= {"machine": machine, "cpus": os.cpu_count(), "load": os.getloadavg()[0]}
    result |= {name: vars(args)[name] for name in ("model", "classes", "batch", "device")}
    pretrained = None if args.model in PACKAGED_BACKBONES else "random"
    with tempfile.TemporaryDirectory() as folder:
        spec = OpenClip(model=args.model, pretrained=pretrained)
        clip = load_clip(prepare_clip(spec, Path(folder), PACKAGED_BACKBONES), args.device)
        chosen = [made(kind, args) for kind in LEARNERS if kind().name not in ("zero_shot", "coop")]
        chosen = [one for one in chosen if all(gives(spec, kind) for kind in one.inputs)]
        chosen = [one for one in chosen if not args.learners or one.name in args.learners]
        result["rows"] = [row for one in chosen for row in measured(one, clip, args)]
    print(f"{args.model}, {args.classes} classes, batch {args.batch}, {args.device}")
    print("learner        trained   ms/step  x CoOp  multiply-adds x CoOp")
    for row in result["rows"]:
        times = f"{1e3 * row['step_s']:9,.1f}{row['ratio']:8.2f}{row['work_ratio']:10.2f}"
        print(f"{row['learner']:12}{row['trained']:>10,}{times}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def made(kind: type[Learner], args: argparse.Namespace) -> Learner:
    """A learner at its defaults, save how many layers have prompts."""
    learner = kind()
    if args.depth is None or "depth" not in vars(learner):
        return learner
    changed: Learner = replace(learner, depth=args.depth)  # type: ignore[type-var]
    return changed


def measured(learner: Learner, clip: Clip, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row, or none where this backbone does not do for the learner."""
    try:
        problem = problem_of(learner, clip, args)
    except ConfigError as reason:
        print(f"{learner.name}: {str(reason).splitlines()[0]}")
        return []
    steps = [step_of(problem_of(CoOp(), clip, args), args), step_of(problem, args)]
    work = [multiply_adds(step) for step in steps]
    seconds: list[list[float]] = [[], []]
    for _ in range(args.repeats):
        for step, taken in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            if args.device.startswith("cuda"):
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    coop_s, step_s = (min(taken) for taken in seconds)
    row = {"learner": learner.name, "coop_s": coop_s, "step_s": step_s, "ratio": step_s / coop_s}
    row |= {"work_ratio": work[1] / work[0], "multiply_adds": work[1]}
    return [row | {"trained": sum(t.numel() for t in problem.initial.values())}]


def problem_of(learner: Learner, clip: Clip, args: argparse.Namespace) -> Problem:
    """A batch of random stored features of the shapes that the backbone has."""
    frozen = learner.prepare(clip, Task(CLASSES[: args.classes]))
    draws = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(args.batch, *shape, generator=draws).to(clip.text.device)

    makers: dict[str, Callable[[], torch.Tensor]] = {
        "features": lambda: F.normalize(drawn(clip.embed_dim), dim=-1),
        "patches": lambda: F.normalize(drawn(args.patches, clip.embed_dim), dim=-1),
        "tokens": lambda: drawn(args.patches + 1, clip.vision_tower().width),
    }
    inputs = {kind: makers[kind]() for kind in learner.inputs}
    labels = torch.randint(args.classes, (args.batch,), generator=draws).to(clip.text.device)
    return Problem(learner, frozen, learner.init(frozen, generator(0, "init")), inputs, labels)


def step_of(problem: Problem, args: argparse.Namespace) -> Callable[[], Params]:
    """One client's round of one step."""
    rule = Exchange() if isinstance(problem.learner, TakesExperts) else FedAvg()
    specs = problem.learner.tensors(problem.initial)
    broadcast = rule.broadcast(rule.init_server(problem.initial, specs, 1))
    states = stack([rule.init_client(problem.initial, specs)])
    moment, rows = Moment(0, 1, 0), torch.arange(args.batch)
    training = Training(TRAINING.optimizer, local_steps=1, batch_size=args.batch)
    work = plan_work(training, moment, [0], [rows])
    return lambda: train_group(problem, rule, training, broadcast, states, work, moment).update


def multiply_adds(step: Callable[[], Params]) -> int:
    """Of the matrix products of a step, forwards and backwards; it also warms up."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    main()
