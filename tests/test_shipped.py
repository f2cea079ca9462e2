"""What stands in the repository for users works as it stands: examples, README, commands."""

import re
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner
from language_toys import BERT, write_model, write_texts

import fedarena
from orchestrator.catalogue import KINDS, entries
from orchestrator.cli import main
from orchestrator.loading import is_sweep, load_config, resolve, to_yaml
from orchestrator.sweep.design import Design
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.run import run_sweep
from orchestrator.yaml_text import read_yaml

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "examples").glob("*.yaml"))
EXAMPLES = [path for path in FILES if not is_sweep(read_yaml(path))]
SWEEPS = [path for path in FILES if path not in EXAMPLES]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_trial_of_an_example_sweep_is_a_valid_experiment(path):
    assert len(Design(load_sweep(path)).check()) > 1


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_loads_and_survives_a_round_trip(path, tmp_path):
    config = resolve(load_config(path))
    (tmp_path / "copy.yaml").write_text(to_yaml(config))
    assert resolve(load_config(tmp_path / "copy.yaml")) == config


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs_at_a_small_size(path, make_config, tiny_clip, colours, tmp_path):
    small = make_config()
    on_images = [f"backbone.model=local-dir:{tiny_clip}", f"scenario.dataset={colours}"]
    result = fedarena.run(
        path,
        "resources.executor=inline",
        *(_on_texts(tmp_path) if load_config(path).backbone.name == "transformers" else on_images),
        "scenario.num_clients=4",
        "federation.rounds=2",
        "tracking.enabled=false",
        f"folder={small.folder}",
        f"store={small.store}",
    )
    assert result.summary["eval/personal/accuracy"] > 0
    assert list(result.rounds.index) == list(range(len(result.records)))


def test_fedoa_on_pictures_and_on_texts_is_one_grid(make_config, tiny_clip, colours, tmp_path):
    small = make_config()
    (path,) = (path for path in SWEEPS if path.stem == "fedoa_sweep")
    raw = {**read_yaml(path), "seeds": 1}
    pictures, texts = (raw["axes"]["data"][name] for name in ("pictures", "texts"))
    pictures["backbone"]["model"] = f"local-dir:{tiny_clip}"
    pictures["scenario.dataset"] = str(colours)
    model = write_model(tmp_path / "language", BERT)
    texts["backbone"] |= {"model": str(model), "pretrained": "random", "max_length": 12}
    texts["scenario.dataset"] = f"{write_texts(tmp_path)}?duplicates=drop"
    texts["scenario.shots"] = None
    raw["base"] |= {"folder": str(small.folder), "store": str(small.store)}
    raw["base"] |= {"resources": {"executor": "inline"}, "tracking": {"enabled": False}}
    raw["base"]["federation"]["rounds"] = 2
    raw["base"]["scenario"]["num_clients"] = 4
    ended = run_sweep(load_sweep(raw)).ended
    cells = {(e.trial.method, e.trial.cell["data"]): e.status for e in ended}
    assert cells == dict.fromkeys(
        product(("fedavg", "fedoa", "local-only"), raw["axes"]["data"]), "finished"
    )


def _on_texts(folder):
    model = write_model(folder / "language", BERT)
    yield from (f"backbone.model={model}", "backbone.pretrained=random", "backbone.max_length=12")
    yield from (f"scenario.dataset={write_texts(folder)}?duplicates=drop", "scenario.shots=null")


def test_every_command_of_the_readme_is_a_command():
    text = (ROOT / "README.md").read_text()
    used = set(re.findall(r"^\s*(?:\.venv/bin/)?fedarena (\w+)", text, flags=re.MULTILINE))
    assert used
    assert used <= set(main.commands)
    targets = set(re.findall(r"^make (\w+)", text, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"quickstart", "test"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_every_file_that_the_readme_links_is_there():
    for name in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / name).exists(), name


def test_every_published_clip_that_is_named_computes_as_its_weights_were_trained():
    import open_clip

    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.yaml")]
    told = "\n".join(path.read_text() for path in pages)
    named = set(re.findall(r"backbone\.model=(\S+) backbone\.pretrained=(\w+)", told))
    named |= set(re.findall(r"model: ([\w-]+), pretrained: (\w+)", told))
    named = {(model, tag) for model, tag in named if tag != "random"}
    assert named
    for model, tag in named:
        weights = open_clip.get_pretrained_cfg(model, tag)
        assert weights, (model, tag)
        computed = open_clip.get_model_config(model).get("quick_gelu", False)
        assert bool(weights.get("quick_gelu", False)) == bool(computed), (model, tag)


def test_a_file_of_the_other_kind_is_told_as_such():
    sweep, experiment = str(SWEEPS[0]), str(EXAMPLES[0])
    told = CliRunner().invoke(main, ["run", sweep]).output
    assert f"{sweep} is a sweep" in told
    assert "fedarena sweep" in told
    told = CliRunner().invoke(main, ["sweep", experiment]).output
    assert f"{experiment} is one experiment" in told
    assert "fedarena run" in told


@pytest.mark.parametrize("kind", KINDS)
def test_lists_name_every_member_with_a_line(kind):
    found = entries(kind)
    assert found
    assert all(name and line for name, line in found)
    done = CliRunner().invoke(main, ["list", kind])
    assert done.exit_code == 0
    assert all(name in done.output for name, _ in found)


def small_run(make_config, tmp_path, *overrides):
    (tmp_path / "one.yaml").write_text(to_yaml(make_config("name=one", *overrides)))
    return str(tmp_path / "one.yaml")


def test_run_prints_the_table_and_what_to_do_next(make_config, tmp_path):
    file, database = small_run(make_config, tmp_path), f"sqlite:///{tmp_path}/mlflow.db"
    words = ["run", file, "federation.rounds=2", "tracking.enabled=true"]
    done = CliRunner().invoke(main, [*words, f"tracking.uri={database}"])
    assert done.exit_code == 0, done.output
    next_run = "fedarena run examples/promptfl.yaml"
    for word in ("acc %", "worst", "MB up", f"fedarena ui --uri {database}", next_run, "one"):
        assert word in done.output


def test_what_is_not_there_is_no_next_command(make_config, tmp_path, monkeypatch):
    file = small_run(make_config, tmp_path)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["run", file, "federation.rounds=1"])
    assert "fedarena ui" not in done.output, "nothing was tracked"
    assert "examples/" not in done.output
    assert "fedarena show one-" in done.output


def test_resume_goes_on_with_a_run_by_its_name(make_config, tmp_path):
    file = small_run(make_config, tmp_path)
    CliRunner().invoke(main, ["run", file])
    folder = make_config().folder
    (name,) = (path.name for path in folder.iterdir())
    done = CliRunner().invoke(main, ["resume", name, "--folder", str(folder)])
    assert done.exit_code == 0, done.output
    changed = CliRunner().invoke(main, ["resume", name, "seed=9", "--folder", str(folder)])
    assert changed.exit_code == 1
    assert "seed: 0 -> 9" in changed.output


def test_a_dry_run_shows_sizes_and_leaves_nothing_behind(make_config, tmp_path):
    file = small_run(make_config, tmp_path)
    done = CliRunner().invoke(main, ["run", file, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "KB per round" in done.output
    assert not make_config().folder.exists()


def test_a_faulty_config_is_told_without_a_trace_and_runs_nothing(make_config, tmp_path):
    file = small_run(make_config, tmp_path)
    words = ["run", file, "federation.round=3", "training.batch_size=0", "seed=x"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    for word in ("federation.round", "Did you mean 'rounds'", "batch_size", "seed"):
        assert word in done.output
    assert not make_config().folder.exists()
