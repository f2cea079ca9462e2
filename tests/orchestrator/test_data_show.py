"""``fedarena data show``: its numbers are the population's, and what it writes can be read."""

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fl_core.errors import DataError
from orchestrator.data.show import measure_heterogeneity, read_population, show
from scenarios.data.catalogue import load_dataset
from scenarios.partitions import DomainDirichlet, Natural
from scenarios.picture import picture
from scenarios.population import Population
from scenarios.scenario import Scenario, build_population

CONFIG = "scenario: {dataset: emoji_coarse, num_clients: 8, partition: {name: dirichlet}}\n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def emoji():
    return load_dataset("emoji_coarse")


def shown(*arguments):
    done = CliRunner().invoke(show, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_every_client_has_a_line_with_its_rows(config, emoji):
    output = shown(config, "scenario.seed=3")
    population = build_population(Scenario(num_clients=8, seed=3), emoji)
    lines = [line.split() for line in output.splitlines() if line[:1].isspace()]
    lines = {line[0]: line[1:] for line in lines if line and line[0].isdigit()}
    assert len(lines) == 8
    for client in range(8):
        train, validation, test = map(len, population.shard(client))
        assert lines[str(client)][:3] == [str(train), str(validation), str(test)]
    assert population.hash in output


def test_many_clients_are_shown_as_quantiles(config):
    output = shown(config, "scenario.num_clients=50")
    assert "of 50 clients" in output
    assert "median" in output
    assert len(output.splitlines()) < 20


def test_a_saved_manifest_shows_the_same_and_its_picture_opens(config, tmp_path):
    manifest, drawing = tmp_path / "made" / "p.parquet", tmp_path / "made" / "p.png"
    first = shown(config, "--save", manifest, "--picture", drawing)
    again = shown(manifest)
    assert first.startswith(again)
    assert Population.load(manifest).hash in again
    assert Image.open(drawing).format == "PNG"
    with pytest.raises(DataError, match="nothing can be overridden"):
        read_population(manifest, ["scenario.seed=1"])


def test_natural_clients_are_shown_by_name(emoji, tmp_path):
    names = ("[bold]ann", "bo")
    clients = replace(emoji, client_ids=emoji.concept_ids % 2, clients=names)
    build_population(Scenario(partition=Natural()), clients).save(tmp_path / "n.parquet")
    output = shown(tmp_path / "n.parquet")
    assert "[bold]ann" in output
    assert " bo " in output


def test_heterogeneity_is_that_of_a_plain_computation(emoji):
    population = build_population(Scenario(num_clients=9, partition=DomainDirichlet()), emoji)
    found = measure_heterogeneity(population)
    sizes = [len(population.train[client]) for client in range(9)]
    gaps = [abs(a - b) for a in sizes for b in sizes]
    assert found.size_gini == pytest.approx(sum(gaps) / (2 * 9 * sum(sizes)))
    assert found.size_variation == pytest.approx(np.std(sizes) / np.mean(sizes))
    for column, distance in (
        (emoji.labels, found.label_distance),
        (emoji.domain_ids, found.domain_distance),
    ):
        everything = column[population.train.rows].tolist()
        total = 0.0
        for client in range(9):
            own = column[population.train[client]].tolist()
            for value in set(everything):
                total += abs(
                    own.count(value) / len(own) - everything.count(value) / len(everything)
                )
        assert distance == pytest.approx(total / 2 / 9)


@pytest.mark.parametrize(("num_clients", "num_panels"), [(8, 3), (200, 3)])
def test_the_picture_shows_all_classes_and_the_domains(emoji, num_clients, num_panels):
    partition = DomainDirichlet(top_up=True)
    population = build_population(Scenario(num_clients=num_clients, partition=partition), emoji)
    bars, shares, domains = picture(population).axes[:num_panels]
    assert shares.images[0].get_array().shape == (24, num_clients)
    assert len(domains.containers) == len(emoji.domains)
    heights = [sum(p.get_height() for p in axes.patches) for axes in (bars, domains)]
    assert heights[0] == pytest.approx(heights[1])
