"""Whole runs on views of the training images: stored ones, and fresh ones in every round."""

from __future__ import annotations

import pytest
import torch

from fl_core.backbones.clip import load_clip
from orchestrator.client import ClientActor
from orchestrator.encoding import with_fresh_views
from orchestrator.executors import InlineExecutor
from orchestrator.experiment import compute_features, prepare_experiment
from orchestrator.host import CoordinatorHost
from orchestrator.loading import resolve
from orchestrator.results import Result
from scenarios.augment import Augmentation, view


def final(config):
    for event in CoordinatorHost().run(resolve(config)):
        last = event
    return Result.load(last.folder)


@pytest.mark.parametrize("views", [0, 3, "fresh"])
def test_a_run_is_repeated_bit_for_bit_whatever_the_views(make_config, tmp_path, views) -> None:
    first, second = (
        final(make_config(f"augmentation.views={views}", f"folder={tmp_path / name}"))
        for name in ("a", "b")
    )
    assert first.parameters.keys() == {"context"}
    assert torch.equal(first.parameters["context"], second.parameters["context"])


def test_views_change_what_is_trained_and_not_what_is_scored(make_config, tmp_path) -> None:
    runs = {
        views: final(make_config(f"augmentation.views={views}", f"folder={tmp_path / str(views)}"))
        for views in (0, 3, "fresh")
    }
    contexts = [run.parameters["context"] for run in runs.values()]
    assert not torch.equal(contexts[0], contexts[1])
    assert not torch.equal(contexts[0], contexts[2])
    before = [run.records[0].metrics["eval/global/nll"] for run in runs.values()]
    assert before[0] == before[1] == before[2]


def test_stored_views_are_the_features_of_the_views(make_config) -> None:
    config = resolve(make_config("augmentation.views=2"))
    experiment, executor = prepare_experiment(config), InlineExecutor()
    list(compute_features(experiment, executor))
    actor = ClientActor()
    actor.configure(experiment.setup())
    stored = actor.problem.views["features"]  # [N, V, D]
    dataset = experiment.datasets[config.scenario.dataset]
    assert stored.shape[:2] == (len(dataset), 2)
    clip = load_clip(experiment.backbone.folder)
    encoder, transform = clip.encoder("features"), clip.transform()
    for row, number in ((0, 0), (7, 1), (len(dataset) - 1, 0)):
        shown = view(dataset.image(row), config.augmentation, 16, (0, number, row))
        with torch.no_grad():
            expected = encoder(transform(shown)[None])[0]
        torch.testing.assert_close(stored[row, number], expected, atol=1e-5, rtol=1e-5)


def test_fresh_views_differ_by_round_and_not_by_who_asks(make_config) -> None:
    experiment = prepare_experiment(resolve(make_config("augmentation.views=fresh")))
    list(compute_features(experiment, InlineExecutor()))
    actor, setup = ClientActor(), experiment.setup()
    actor.configure(setup)
    rows = torch.tensor([5, 2, 9])
    (one, (at,)), (two, _) = (
        with_fresh_views(setup, actor.problem, [rows], round) for round in (0, 1)
    )
    many, (first, _) = with_fresh_views(setup, actor.problem, [rows, torch.tensor([1, 2])], 0)
    shown = one.views["features"][at, 0]
    assert torch.equal(one.labels[at], actor.problem.labels[rows])
    assert not torch.equal(shown, two.views["features"][at, 0])
    torch.testing.assert_close(shown, many.views["features"][first, 0], atol=1e-6, rtol=1e-6)
    assert setup.augmentation == Augmentation(views="fresh")
