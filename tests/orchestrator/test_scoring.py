"""Scoring whole runs under every protocol: by hand from the features, and laws over slots."""

import hashlib
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_core.backbones.clip import load_clip
from fl_core.errors import DataError
from fl_core.seeds import derive, generator
from orchestrator import scoring
from orchestrator.checkpoint import RunStore
from orchestrator.client import ClientActor
from orchestrator.coordinator import Coordinator
from orchestrator.events import Committed
from orchestrator.executors import InlineExecutor
from orchestrator.experiment import prepare_experiment, run_folder
from orchestrator.host import CoordinatorHost
from orchestrator.results import MEASURED
from orchestrator.run import run_experiments
from scenarios.features import FeatureStore

HUES = {"red": (200, 40, 40), "green": (40, 190, 60), "blue": (50, 60, 200), "grey": (120,) * 3}
HUES["white"] = (230, 230, 230)
STYLES = ("dark", "flat", "noisy")
NUM_TRAIN, NUM_TEST = 8, 5


def picture(hue, style, draws):
    pixels = np.array(hue) + draws.integers(-25, 26, (16, 16, 3))
    if style == "dark":
        pixels = pixels // 2
    if style == "noisy":
        pixels = pixels + draws.integers(-70, 71, (16, 16, 1))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_pictures(path, hues, styles, seed, templates=("a {} square", "{}"), has_split=True):
    """A Parquet file in the packaged format: hues in styles, the novel ones first."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    draws, records = np.random.default_rng(seed), []
    for name in sorted(hues, reverse=True):  # so that the first row has no label among the base
        for style in styles:
            for index in range(NUM_TRAIN + NUM_TEST):
                pixels, stream = picture(hues[name], style, draws), io.BytesIO()
                Image.fromarray(pixels).save(stream, format="PNG")
                record = {"image": stream.getvalue(), "label": name, "domain": style}
                record["sha256"] = hashlib.sha256(pixels.tobytes()).hexdigest()
                record["concept"] = f"{name} {style} {index}"
                if has_split:
                    record["split"] = "train" if index < NUM_TRAIN else "test"
                records.append(record)
    described = {"name": path.stem, "templates": templates, "classes": sorted(hues)}
    table = pa.Table.from_pylist(records)
    pq.write_table(table.replace_schema_metadata({"fedarena": json.dumps(described)}), path)
    return path


@pytest.fixture(scope="session")
def hues(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hues")
    return write_pictures(folder / "hues.parquet", HUES, STYLES, 0)


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    other = {"pink": (230, 130, 180), "olive": (120, 120, 30)}
    return write_pictures(folder / "others.parquet", other, ("plain",), 1, ("{} things",))


PROTOCOLS = {
    "standard": ("scenario.protocol.neighbours=2",),
    "base_to_novel": (
        "scenario.protocol=base_to_novel",
        "scenario.partition=disjoint_classes",
        "scenario.num_clients=2",
    ),
    "leave_domain_out": ("scenario.protocol={name: leave_domain_out, domain: dark}",),
    "leave_task_out": ("scenario.protocol={name: leave_task_out, task: noisy}",),
    "cross_dataset": ("scenario.protocol={name: cross_dataset, datasets: [OTHERS]}",),
    "unseen_clients": ("scenario.protocol={name: unseen_clients, fraction: 0.4}",),
}
BESIDES = {
    "standard": ["neighbours"],
    "base_to_novel": ["base", "novel", "local"],
    "leave_domain_out": ["held_out"],
    "leave_task_out": ["held_out"],
    "cross_dataset": ["dataset/others"],
    "unseen_clients": ["unseen"],
}


@pytest.fixture
def setting(make_config, hues, others):
    """A resolved experiment of two rounds on the pictures."""

    def make(*overrides):
        fixed = [f"scenario.dataset={hues}", "scenario.num_clients=5", "federation.rounds=2"]
        overrides = [text.replace("OTHERS", str(others)) for text in overrides]
        return make_config(*fixed, "scenario.partition=iid", *overrides)

    return make


def run(config):
    return run_experiments([config])[0]


def without_times(record):
    return {n: v for n, v in record.metrics.items() if not n.startswith(MEASURED)}


def features_of(experiment, spec):
    key = experiment.features[spec]["features"]
    return FeatureStore(experiment.config.store).open(key).astype(np.float64)


def text_features(experiment, target, templates):
    """Normalised mean over templates of normalised text features, float64 [C, D]."""
    clip = load_clip(experiment.backbone.folder)
    found = []
    for template in templates:
        ids = clip.tokenize([template.format(name) for name in target.classes])
        rows = clip.text.encode_tokens(ids).double().numpy()
        found.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    means = np.mean(found, axis=0)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


# -- every protocol, whole runs ------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_zero_shot_on_every_target_is_what_features_and_names_give_by_hand(setting, name):
    config = setting(*PROTOCOLS[name], "federation.rounds=1")
    first = run(config).records[0].metrics
    experiment = prepare_experiment(config)
    assert [target.name for target in experiment.targets[1:]] == BESIDES[name]
    for target in experiment.targets:
        data = experiment.datasets[target.dataset]
        templates = {"zero_shot": target.templates[:1], "zero_shot_ensemble": target.templates}
        for reference, used in templates.items():
            w = text_features(experiment, target, used)
            logits = features_of(experiment, target.dataset) @ w.T * experiment.backbone.scale
            rows = target.rows if target.name != "home" else experiment.population.global_test
            clients = [rows]
            if target.name in ("neighbours", "unseen", "local"):
                clients = [target.client_rows(c) for c in range(experiment.population.num_clients)]
            values = []
            for client, own in enumerate(clients):
                said = logits[own]
                if target.candidates is not None:
                    said = np.where(target.candidates[client], said, -np.inf)
                names = [target.classes[c] for c in said.argmax(axis=1)]
                truth = [data.classes[label] for label in data.labels[own]]
                if len(own):
                    values.append(np.mean([a == b for a, b in zip(names, truth, strict=True)]))
            short = "global" if target.name == "home" else target.name
            found = first[f"reference/{reference}/{short}/accuracy"]
            assert found == pytest.approx(np.mean(values), abs=1e-9), (target.name, reference)


def test_novel_rows_are_chosen_from_novel_names_and_base_rows_from_base_names(setting):
    config = setting(*PROTOCOLS["base_to_novel"], "federation.rounds=1")
    host = CoordinatorHost()
    list(host.run(config))
    experiment = prepare_experiment(config)
    coordinator = Coordinator(experiment, host.executor, RunStore(run_folder(config)))
    server = coordinator._begin()
    said = {
        target.name: coordinator.scorer._shared(target, server.tensors).predicted
        for target in experiment.targets
    }
    assert len(experiment.population.classes) == 3
    assert experiment.targets[2].classes == ("red", "white")
    assert set(said["base"].tolist()) <= {0, 1, 2}
    assert set(said["novel"].tolist()) <= {0, 1}
    assert len(said["novel"]) == 2 * len(STYLES) * NUM_TEST


CASES = {
    "fedavg": (("federation=fedavg",), True, False, True),
    "ditto": (("federation=ditto",), True, True, True),
    "local_only": (("federation=local_only",), False, True, True),
    "two_parts": (("learner={name: fedpgp, num_tokens: 4, rank: 2}",), True, True, True),
    "centralised": (("federation=centralised",), True, False, True),
    "zero_shot": (("learner=zero_shot",), True, False, True),
    "class_specific": (("learner.class_specific=true",), True, False, False),
}
"""Settings, and whether there is a shared model, own models, and transfer to other names."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", CASES)
def test_every_protocol_scores_what_a_method_has_and_leaves_out_what_it_lacks(
    setting, protocol, case
):
    overrides, has_shared, has_own, transfers = CASES[case]
    config = setting(*PROTOCOLS[protocol], *overrides, "federation.rounds=1")
    last = run(config).last.metrics
    # The held-out domain and the held-out task have the classes that are trained on.
    same_names = {"base", "local", "neighbours", "unseen", "held_out"}
    assert ("eval/global/accuracy" in last) == has_shared
    assert "eval/personal/accuracy" in last
    assert ("eval/personal/shared_accuracy" in last) == (has_shared and has_own)
    for name in BESIDES[protocol]:
        scored = transfers or name in same_names
        assert (f"eval/{name}/accuracy" in last) == (has_shared and scored), name
        newcomers = name == "unseen"  # they use the shared model here
        assert (f"eval/{name}/personal_accuracy" in last) == (
            has_own and scored and not newcomers
        ), name
        assert (f"eval/{name}/over_zero_shot" in last) == (has_shared and scored), name
    if protocol == "base_to_novel":
        assert ("eval/base_to_novel/hm2" in last) == (has_shared and transfers)
        assert ("eval/base_to_novel/personal_hm2" in last) == (has_own and transfers)
    assert all(math.isfinite(value) for value in last.values())


def test_a_training_picture_in_another_data_set_stops_the_experiment(setting, hues, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(hues)
    some = [i for i, split in enumerate(table["split"].to_pylist()) if split == "train"][:2]
    copied = pa.Table.from_pylist(
        [{**table.slice(i, 1).to_pylist()[0], "split": "test"} for i in some]
    )
    described = {"name": "copied", "templates": ["{}"], "classes": sorted(HUES)}
    path = tmp_path / "copied.parquet"
    pq.write_table(copied.replace_schema_metadata({"fedarena": json.dumps(described)}), path)
    protocol = f"scenario.protocol={{name: cross_dataset, datasets: [{path}]}}"
    with pytest.raises(DataError, match=r"2 of the 2 images of dataset/copied .*rows \[0, 1\]"):
        prepare_experiment(setting(protocol, "scenario.validation_fraction=0"))


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_data_without_any_test_row_are_trained_on_all_the_same(setting, tmp_path, fraction):
    path = write_pictures(tmp_path / "bare.parquet", HUES, ("flat",), 2, has_split=False)
    bare = (f"scenario.dataset={path}", "scenario.test_fraction=0", *PROTOCOLS["unseen_clients"])
    last = run(setting(*bare, f"scenario.validation_fraction={fraction}")).last
    scored = {name for name in last.metrics if name.startswith("eval/")}
    assert scored == ({"eval/validation/accuracy"} if fraction else set())
    assert (last.validation is None) == (not fraction)


def test_a_client_that_fails_leaves_its_lane_to_a_row_that_may_have_no_label(setting):
    """The first row is novel: it has no label among the base, and fills up the idle lane."""
    config = setting("scenario.protocol=base_to_novel", "resources.retries=0")
    host = CoordinatorHost()
    events = host.run(config)
    next(event for event in events if isinstance(event, Committed))
    setup = host.executor.actor.setup
    assert setup.home.labels[0] == -1
    rows = setup.rows.copy()
    rows[setup.offsets[2]] = 10**9  # a row that no data set has
    object.__setattr__(setup, "rows", rows)
    first = next(event for event in events if isinstance(event, Committed)).record
    assert list(first.accepted) == [0, 1, 3, 4]
    assert list(first.failures) == ["2"]


# -- clients that never train --------------------------------------------------------------------


def unseen(newcomer, **settings):
    given = {"name": "unseen_clients", "fraction": 0.4, "newcomer": newcomer, **settings}
    return f"scenario.protocol={json.dumps(given)}"


def ready(config):
    """A coordinator that stands after the last round of a finished run, and the server's state."""
    executor = InlineExecutor()
    coordinator = Coordinator(prepare_experiment(config), executor, RunStore(run_folder(config)))
    return coordinator, coordinator._begin()


def newcomers(coordinator, server, has_own):
    """What the protocol's models of the unseen clients make of their test rows."""
    target = coordinator.experiment.targets[1]
    broadcast = coordinator.rule.broadcast(server)
    start = coordinator.rule.shared_model(server) or broadcast
    found = coordinator.scorer._own(target, broadcast, start, coordinator.fresh_state, has_own)
    return [found[client] for client in coordinator.experiment.population.unseen]


def nll_by_hand(coordinator, params, rows):
    """-log p of the true class of rows of the home target, in float64 after the logits."""
    problem = coordinator.executor.actor.problem
    inputs = {kind: values[torch.from_numpy(rows)] for kind, values in problem.inputs.items()}
    with torch.no_grad():
        logits = problem.learner.logits(params, problem.frozen, inputs).double()
    labels = torch.from_numpy(coordinator.experiment.population.labels[rows])
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none").numpy()


@pytest.mark.parametrize("federation", ["fedavg", "local_only", "centralised"])
def test_unseen_clients_are_in_no_cohort_no_validation_and_no_personal_mean(setting, federation):
    few = () if federation == "centralised" else ("federation.clients_per_round=2",)
    config = setting(f"federation={federation}", unseen("shared"), *few, "federation.rounds=5")
    result, experiment = run(config), prepare_experiment(config)
    population, hidden = experiment.population, set(experiment.population.unseen.tolist())
    assert len(hidden) == 2
    assert not np.isin(
        experiment.setup().rows, np.concatenate([population.train[c] for c in hidden])
    ).any()
    for record in result.records:
        if federation != "centralised":
            assert not hidden & set(record.accepted)
            assert not {str(client) for client in hidden} & set(record.loads)
        own = record.client_metrics["eval/personal/accuracy"]
        assert {c for c, value in enumerate(own) if value is None} == hidden
        known = [value for value in own if value is not None]
        assert record.metrics["eval/personal/accuracy"] == pytest.approx(np.mean(known))
    if federation == "local_only":
        assert not any("unseen" in name for name in result.last.metrics if "reference" not in name)
        return
    coordinator, server = ready(config)
    rows = population.global_validation
    problem = coordinator.executor.actor.problem
    logits = problem.learner.logits(
        server.tensors, problem.frozen, {"features": problem.inputs["features"][rows]}
    )
    right = logits.argmax(dim=1).numpy() == population.labels[rows]
    assert result.last.validation == pytest.approx(right.mean())


@pytest.mark.parametrize("federation", ["fedavg", "{name: round_average, center: 0.0}"])
def test_a_newcomer_that_adapts_takes_so_many_steps_on_its_own_training_rows(setting, federation):
    steps, lr = 5, 0.1
    config = setting(
        f"federation={federation}",
        unseen("adapt", adapt_steps=steps),
        "training.max_grad_norm=0.5",
    )
    run(config)
    coordinator, server = ready(config)
    shared = config.federation.shared_model(server)
    population, problem = coordinator.experiment.population, coordinator.executor.actor.problem
    for client, scores in zip(
        population.unseen, newcomers(coordinator, server, False), strict=True
    ):
        shard = torch.from_numpy(population.train[client])
        assert 8 < len(shard) < 8 * steps  # so that the passes are cut into unequal batches
        draws, queue = generator(derive(config.seed, "adapt"), "batches", 0, int(client)), []
        context = shared["context"].clone().requires_grad_()
        optimizer = torch.optim.SGD([context], lr=lr, momentum=0.9, weight_decay=5e-4)
        for step in range(steps):
            if not queue:
                queue = list(shard[torch.randperm(len(shard), generator=draws)].split(8))
            rows = queue.pop(0)
            features = {"features": problem.inputs["features"][rows]}
            logits = problem.learner.logits({"context": context}, problem.frozen, features)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, problem.labels[rows]).backward()
            torch.nn.utils.clip_grad_norm_([context], 0.5)
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.step()
        expected = nll_by_hand(coordinator, {"context": context.detach()}, scores.rows)
        assert np.allclose(scores.nll, expected, rtol=1e-4)
        unchanged = nll_by_hand(coordinator, shared, scores.rows)
        assert not np.allclose(scores.nll, unchanged, rtol=1e-2)


@pytest.mark.parametrize("federation", ["centralised", "local_only"])
def test_newcomers_also_adapt_where_data_are_pooled_or_nothing_is_shared(setting, federation):
    last = run(setting(f"federation={federation}", unseen("adapt"), "scenario.shots=6")).last
    assert last.metrics["eval/unseen/personal_accuracy"] > 0
    personal = last.metrics["eval/personal/accuracy"]
    gap = personal - last.metrics["eval/unseen/personal_accuracy"]
    assert last.metrics["eval/unseen/participation_gap"] == pytest.approx(gap)


@pytest.mark.parametrize("federation", ["fedex_lora", "flora"])
def test_a_newcomer_adapts_on_top_of_what_rounds_have_merged(setting, federation):
    config = setting(
        f"federation={federation}",
        "federation.downlink=factors",
        "learner={name: lora_clip, towers: text, dropout: 0.0, alpha: 8}",
        unseen("adapt", adapt_steps=1),
        "scenario.shots=6",
    )
    assert run(config).last.metrics["lora/effective_rank"] > 0
    coordinator, server = ready(config)
    population, problem = coordinator.experiment.population, coordinator.executor.actor.problem
    merged = config.federation.shared_model(server)
    deltas = {name: tensor for name, tensor in merged.items() if name.endswith(".delta")}
    assert any(delta.any() for delta in deltas.values())
    for client, scores in zip(
        population.unseen, newcomers(coordinator, server, False), strict=True
    ):
        shard = torch.from_numpy(population.train[client])
        draws = generator(derive(config.seed, "adapt"), "batches", 0, int(client))
        rows = shard[torch.randperm(len(shard), generator=draws)][:8]
        params = {name: merged[name].clone().requires_grad_() for name in problem.initial}
        optimizer = torch.optim.SGD(params.values(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        features = {"features": problem.inputs["features"][rows]}
        logits = problem.learner.logits(params | deltas, problem.frozen, features)
        torch.nn.functional.cross_entropy(logits, problem.labels[rows]).backward()
        optimizer.step()
        own = torch.from_numpy(scores.rows)
        features = {"features": problem.inputs["features"][own]}
        for dense, close in ((deltas, True), ({}, False)):
            with torch.no_grad():
                logits = problem.learner.logits(params | dense, problem.frozen, features)
            nll = torch.nn.functional.cross_entropy(logits, problem.labels[own], reduction="none")
            assert np.allclose(scores.nll, nll, rtol=1e-3, atol=1e-4) == close


@pytest.mark.parametrize("codec", ["fp32", "top_k"])
@pytest.mark.parametrize("federation", ["flexlora", "hetlora"])
def test_actors_send_the_part_of_each_clients_rank(setting, federation, codec):
    config = setting(
        f"federation={federation}",
        "federation.ranks=[1,4,2]",
        "learner={name: lora_clip, towers: text, rank: 4}",
        f"communication.codec={codec}",
        "scenario.shots=6",
    )
    for record in run(config).records[1:]:
        up = {int(client): load[0] for client, load in record.loads.items()}
        assert len(up) == 5
        assert not record.failures
        assert up[0] == up[3] < up[2] < up[1] == up[4]


def test_the_mean_personal_model_is_the_mean_over_those_who_have_taken_part(setting):
    config = setting(
        "learner={name: fedpgp, num_tokens: 4, rank: 2}",
        unseen("mean_personal"),
        "federation.clients_per_round=1",
        "communication.codec=top_k",
    )
    result = run(config)
    taken_part = {client for record in result.records for client in record.accepted}
    coordinator, server = ready(config)
    assert 0 < len(taken_part) < 3
    versions = coordinator.ledger.versions_of(sorted(taken_part))
    states = list(coordinator.ledger.client_states(versions).values())
    assert any(name.startswith("codec.") for name in states[0])
    mean = {
        name: torch.stack([state[f"personal.{name}"].double() for state in states]).mean(0).float()
        for name in ("left", "right")
    }
    population = coordinator.experiment.population
    right = []
    for scores in newcomers(coordinator, server, True):
        expected = nll_by_hand(coordinator, {**server.tensors, **mean}, scores.rows)
        assert np.allclose(scores.nll, expected, rtol=1e-5)
        right.append((scores.predicted == population.labels[scores.rows]).mean())
    found = result.last.metrics["eval/unseen/personal_accuracy"]
    assert found == pytest.approx(np.mean(right))
    assert "eval/unseen/personal_accuracy" in result.records[0].metrics


@pytest.mark.parametrize(
    "overrides",
    [
        ("federation=fedavg", "communication.codec=top_k"),
        ("federation=scaffold", "training.optimizer.momentum=0", "training.schedule=constant"),
        ("learner=zero_shot",),
    ],
)
@pytest.mark.parametrize("newcomer", ["mean_personal", "adapt"])
def test_a_state_that_is_no_model_is_not_taken_for_one(setting, overrides, newcomer):
    """Residuals and control variates are private too; zero-shot has nothing to adapt."""
    last = run(setting(*overrides, unseen(newcomer))).last.metrics
    has_own = newcomer == "adapt" and "learner=zero_shot" not in overrides
    assert ("eval/unseen/personal_accuracy" in last) == has_own
    assert "eval/unseen/accuracy" in last


# -- laws ----------------------------------------------------------------------------------------


class Several(InlineExecutor):
    """Several actors in this process; the last one answers first."""

    def __init__(self, num_slots):
        super().__init__()
        self.num_slots, self.actors = num_slots, [ClientActor() for _ in range(num_slots)]

    def configure(self, setup):
        for actor in self.actors:
            actor.configure(setup)

    def run(self, calls, shared=b""):
        for call in reversed(calls):
            yield call.slot, self.actors[call.slot].do(call.make(False), shared)


def records_on(config, executor, folder):
    coordinator = Coordinator(prepare_experiment(config), executor, RunStore(folder))
    return [event.record for event in coordinator.run() if isinstance(event, Committed)]


LAWS = [
    ("scenario.protocol=base_to_novel", "federation=ditto"),
    (*PROTOCOLS["standard"], "learner={name: fedpgp, num_tokens: 4, rank: 2}"),
    (unseen("mean_personal"), "federation=local_only"),
    (unseen("adapt"), "federation=fedavg", "scenario.shots=6"),
]


@pytest.mark.parametrize("overrides", LAWS, ids=lambda o: o[-1])
def test_no_score_depends_on_the_number_of_slots(setting, monkeypatch, tmp_path, overrides):
    monkeypatch.setattr(scoring, "BLOCK", 7)
    monkeypatch.setattr(scoring, "OWN_BLOCK", 5)
    config = setting(*overrides)
    alone, *others = (
        records_on(config, executor, tmp_path / f"{executor.num_slots}")
        for executor in (InlineExecutor(), Several(2), Several(5))
    )
    for records in others:
        for ours, theirs in zip(records, alone, strict=True):
            assert without_times(ours) == without_times(theirs)
            assert ours.client_metrics == theirs.client_metrics
            assert ours.validation == theirs.validation


@pytest.mark.parametrize("overrides", LAWS, ids=lambda o: o[-1])
def test_the_size_of_the_blocks_changes_no_prediction(setting, monkeypatch, tmp_path, overrides):
    config = setting(*overrides)
    whole = records_on(config, InlineExecutor(), tmp_path / "whole")
    monkeypatch.setattr(scoring, "BLOCK", 7)
    monkeypatch.setattr(scoring, "OWN_BLOCK", 5)
    blocks = records_on(config, InlineExecutor(), tmp_path / "blocks")
    for ours, theirs in zip(blocks, whole, strict=True):
        assert ours.client_metrics == theirs.client_metrics
        expected = without_times(theirs)
        assert without_times(ours) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        exact = [name for name in expected if name.endswith("accuracy")]
        assert all(ours.metrics[name] == expected[name] for name in exact)


@pytest.mark.parametrize("overrides", LAWS, ids=lambda o: o[-1])
def test_scoring_changes_nothing_and_again_gives_the_same(setting, overrides):
    config = setting(*overrides)
    last = run(config).last
    coordinator, server = ready(config)
    actor, ledger = coordinator.executor.actor, coordinator.ledger
    clients = coordinator.experiment.population.num_clients
    versions = {c: v for c, v in ledger.versions_of(range(clients)).items() if v >= 0}

    def held():
        states = ledger.client_states(versions)
        tensors = [server.tensors, actor.problem.initial, actor.problem.inputs, *states.values()]
        tensors += [coordinator.fresh_state, {"labels": actor.problem.labels}]
        return [{name: tensor.clone() for name, tensor in part.items()} for part in tensors]

    before = held()
    first, second = (coordinator.scorer.score(server, coordinator.fresh_state) for _ in "ab")
    for old, new in zip(before, held(), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    counts = first.confusion, second.confusion
    assert (counts[0] is None) == (counts[1] is None)
    assert counts[0] is None or np.array_equal(*counts)
    assert replace(first, confusion=None) == replace(second, confusion=None)
    assert first.flat == {n: v for n, v in last.metrics.items() if n.startswith("eval/")}


@pytest.mark.parametrize("after_round", [-1, 0])
@pytest.mark.parametrize("overrides", LAWS, ids=lambda o: o[-1])
def test_a_resumed_run_has_the_same_scores_and_keeps_its_references(
    setting, overrides, after_round
):
    cut, whole = setting(*overrides, "name=cut"), setting(*overrides, "name=whole")
    for event in CoordinatorHost().run(cut):
        if isinstance(event, Committed) and event.record.round == after_round:
            break
    first = RunStore(run_folder(cut)).records()[0]
    result, expected = run(cut), run(whole)
    assert result.records[0] == first
    for ours, theirs in zip(result.records, expected.records, strict=True):
        assert without_times(ours) == without_times(theirs)
        assert ours.client_metrics == theirs.client_metrics
    coordinator, _ = ready(cut)
    reference = coordinator.ledger.reference
    assert reference.round == -1
    zero_shot = {n: v for n, v in first.metrics.items() if n.startswith("reference/zero_shot/")}
    assert zero_shot.items() <= reference.metrics.items()
    gained = result.last.metrics["eval/personal/accuracy"]
    gained -= zero_shot["reference/zero_shot/personal/accuracy"]
    assert result.last.metrics["eval/personal/over_zero_shot"] == pytest.approx(gained)


def test_without_references_nothing_is_compared(setting):
    records = run(setting("evaluation.references=false")).records
    names = {name for record in records for name in record.metrics}
    assert not any("zero_shot" in name or "reference" in name for name in names)
