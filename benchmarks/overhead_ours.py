"""What ``round_overhead.py`` times in this environment: fedarena's rounds, and a bare Ray loop.

Run by it in a process of its own: ``python overhead_ours.py NAME SETTING`` (JSON); prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import open_clip
import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from cluster.connect import connect
from cluster.reserve import Slices, reserve
from fl_core.backbones.clip import load_clip, prepare_clip
from fl_core.backbones.clip_origin import OpenClip
from fl_core.federation import FedAvg
from fl_core.learners import ZeroShot
from fl_core.optim import SGD
from fl_core.types import Batch, Params, ServerState, TensorSpec
from fl_core.work import Training
from orchestrator.checkpoint import Counts, RoundRecord, RunStore
from orchestrator.config import Evaluation, ExperimentConfig
from orchestrator.coordinator import Coordinator
from orchestrator.events import Committed
from orchestrator.executors import InlineExecutor, RayExecutor
from orchestrator.experiment import Experiment
from orchestrator.jobs import Setup
from orchestrator.loading import resolve
from orchestrator.memory import keep_freed_memory
from scenarios.data.dataset import UNSPECIFIED, Dataset
from scenarios.partitions import Iid
from scenarios.scenario import Scenario, build_population
from scenarios.targets import home_target

NUM_SLOTS = 2
MEMORY_AT = (10, 200)
"""Rounds after which memory is measured."""


@dataclass(frozen=True)
class Vector:
    """One tensor of ``size`` floats, all of which a step moves alike: local work of one pass."""

    size: int
    inputs: ClassVar[tuple[str, ...]] = ()
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 8192
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    name: str = "vector"

    def prepare(self, backbone: Any, task: Any) -> None:
        return None

    def init(self, frozen: None, generator: torch.Generator) -> Params:
        return {"vector": torch.randn(self.size, generator=generator)}

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {"vector": TensorSpec()}

    def loss(self, params: Params, frozen: None, batch: Batch) -> Tensor:
        return params["vector"].sum() * batch.mask.mean()


class VectorExperiment(Experiment):
    """An experiment whose learner is not in the union, so that no config could name it."""

    def setup(self) -> Setup:
        named = Experiment(**vars(self) | {"config": replace(self.config, learner=ZeroShot())})
        return replace(named.setup(), learner=self.config.learner, key=str(self.config.learner))


class RecordsOff(RunStore):
    """A store that keeps nothing: what a round costs without its durable record."""

    def commit(
        self,
        record: RoundRecord,
        server: ServerState,
        states: Mapping[int, Params],
        confusion: Counts | None = None,
    ) -> RoundRecord:
        return record


class Host:
    """The coordinator's process, as ``orchestrator.host`` is in a real run."""

    def __init__(self) -> None:
        keep_freed_memory()

    def run(
        self, setting: dict[str, Any], folder: Path, records: bool, slices: Slices | None
    ) -> Iterator[tuple[int, int]]:
        """Yields, after each round, this process's own resident bytes and its shared ones."""
        experiment = make_experiment(setting, folder)
        executor = RayExecutor(slices, 60.0) if slices else InlineExecutor()
        store = (RunStore if records else RecordsOff)(folder / "run")
        events = Coordinator(experiment, executor, store).run()
        done = 0
        for event in events:
            if isinstance(event, Committed) and event.record.round >= 0:
                yield held_bytes() if done + 1 in MEMORY_AT else (0, 0)
                done += 1
                if done == setting["rounds"]:
                    break
        executor.close()


def make_experiment(setting: dict[str, Any], folder: Path) -> Experiment:
    """A population of ``clients`` with a few rows each, on a backbone that nothing looks at."""
    config = resolve(
        ExperimentConfig(
            name="round-overhead",
            scenario=Scenario(num_clients=setting["clients"], partition=Iid()),
            learner=ZeroShot(),
            federation=FedAvg(rounds=10**6, clients_per_round=setting["cohort"]),
            training=Training(SGD(lr=0.01, momentum=0.0, weight_decay=0.0), local_steps=1),
            evaluation=Evaluation(every=0, references=False),
            folder=folder,
            store=folder / "store",
        )
    )
    config = replace(config, learner=Vector(setting["floats"]))  # type: ignore[arg-type]
    dataset = make_dataset(8 * setting["clients"])
    population = build_population(config.scenario, dataset)
    name = config.scenario.dataset
    home = home_target(population, dataset, name)
    return VectorExperiment(
        config, {name: dataset}, population, [home], make_backbone(folder), {name: {}}
    )


def make_dataset(num_rows: int) -> Dataset:
    rows, zeros = np.arange(num_rows), np.zeros(num_rows, np.int64)
    return Dataset(
        name="numbers",
        classes=("one", "two"),
        templates=("{}",),
        labels=rows % 2,
        domains=("all",),
        domain_ids=zeros,
        concept_ids=rows,
        split=np.full(num_rows, UNSPECIFIED, np.int8),
        content_hashes=rows.astype("<i8").repeat(4).view(np.uint8).reshape(num_rows, 32),
        items=None,  # type: ignore[arg-type]
    )


def make_backbone(folder: Path) -> Any:
    source = folder / "clip"
    source.mkdir(parents=True)
    vision = {"layers": 1, "width": 16, "head_width": 16, "patch_size": 16, "image_size": 16}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    about = {"model_cfg": config, "preprocess_cfg": {}}
    (source / "open_clip_config.json").write_text(json.dumps(about))
    model = open_clip.model.CLIP(**config)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, source / "open_clip_model.safetensors")
    return load_clip(prepare_clip(OpenClip(model=f"local-dir:{source}"), folder / "prepared", {}))


def fedarena(setting: dict[str, Any], records: bool) -> dict[str, Any]:
    """Rounds of the coordinator in an actor, watched from this process as a driver does."""
    import ray

    slices = reserve(NUM_SLOTS, {"CPU": 1.0})
    with tempfile.TemporaryDirectory() as folder:
        host = ray.remote(Host).options(num_cpus=0).remote()
        run = host.run.options(num_returns="streaming")
        ends: list[float] = []
        memory: dict[str, list[tuple[int, int]]] = {"coordinator": [], "driver": []}
        for reference in run.remote(setting, Path(folder), records, slices):
            held = ray.get(reference)
            ends.append(time.perf_counter())
            if any(held):
                memory["coordinator"].append(held)
                memory["driver"].append(held_bytes())
    return {"seconds": np.diff(ends).tolist(), "memory": memory}


def held_bytes() -> tuple[int, int]:
    """Resident bytes of this process alone, and those it shares (Ray's object store, files)."""
    held = psutil.Process().memory_info()
    return held.rss - held.shared, held.shared


class BareActor:
    """A client loop with nothing around it."""

    def slice(self, clients: list[int], payload: np.ndarray) -> np.ndarray:
        return np.add.reduce([self.client(client, payload) for client in clients])

    def client(self, client: int, payload: np.ndarray) -> np.ndarray:
        return payload * np.float32(0.99)


def bare(setting: dict[str, Any], per: str) -> dict[str, Any]:
    """Broadcast with ray.put, one call per client or per slice, a sum: the floor under any loop."""
    import ray

    actors = [ray.remote(BareActor).options(num_cpus=1).remote() for _ in range(NUM_SLOTS)]
    vector = np.ones(setting["floats"], np.float32)
    cohort = list(range(setting["cohort"]))
    seconds: list[float] = []
    for _ in range(setting["rounds"]):
        began = time.perf_counter()
        payload = ray.put(vector)
        if per == "slice":
            calls = [a.slice.remote(cohort[i::NUM_SLOTS], payload) for i, a in enumerate(actors)]
        else:
            calls = [actors[c % NUM_SLOTS].client.remote(c, payload) for c in cohort]
        total = np.zeros(setting["floats"])
        for call in calls:
            total += ray.get(call)
        vector = (total / len(cohort)).astype(np.float32)
        seconds.append(time.perf_counter() - began)
    for actor in actors:
        ray.kill(actor)
    return {"seconds": seconds}


def main() -> None:
    name, setting = sys.argv[1], json.loads(sys.argv[2])
    os.environ.pop("RAY_ADDRESS", None)  # a cluster of its own, whatever else runs here
    ray = connect(None)
    contestants = {
        "fedarena": lambda: fedarena(setting, records=True),
        "fedarena, records off": lambda: fedarena(setting, records=False),
        "bare Ray, call per client": lambda: bare(setting, "client"),
        "bare Ray, call per slice": lambda: bare(setting, "slice"),
    }
    result = contestants[name]()
    ray.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
