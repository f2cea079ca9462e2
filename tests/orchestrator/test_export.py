"""What a run leaves for others: shared tensors, and a classifier that open_clip alone can use."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from fl_core.backbones.clip import load_clip, prepare_clip
from fl_core.errors import StateError
from fl_core.types import Task
from orchestrator.cli import main
from orchestrator.export import export_classifier, export_shared
from orchestrator.export_adapter import head_of
from orchestrator.loading import load_config
from orchestrator.results import Result
from orchestrator.run import run_experiments
from scenarios.data.catalogue import PACKAGED_BACKBONES

DOCS = Path(__file__).parents[2] / "docs" / "report.md"


def finished(make_config, *overrides):
    result = run_experiments([make_config("federation.rounds=2", *overrides)])[0]
    return result.folder


def expected_logits(run, features):
    """By the learner itself, as training and scoring use it."""
    config = load_config(run / "config.yaml")
    backbone = load_clip(
        prepare_clip(config.backbone, config.store / "backbones", PACKAGED_BACKBONES)
    )
    task = Task(("blue", "green", "red"), ("a photo of a {}.",))
    frozen = config.learner.prepare(backbone, task)
    with torch.no_grad():
        params = Result.load(run).parameters
        return config.learner.logits(params, frozen, {"features": features})


def test_shared_tensors_are_those_of_the_last_round(make_config, tmp_path):
    run = finished(make_config)
    (path,) = export_shared(run, tmp_path / "out")
    written, held = load_file(path), Result.load(run).parameters
    assert written.keys() == held.keys() == {"context"}
    assert torch.equal(written["context"], held["context"])


def test_the_ten_lines_of_the_docs_give_the_logits_of_the_run(
    make_config, colours, tmp_path, monkeypatch
):
    run = finished(make_config)
    out = tmp_path / "out"
    export_classifier(run, out)
    photo = next((colours / "test" / "red").glob("*.png"))
    with Image.open(photo) as image:
        image.save(out / "photo.jpg", format="PNG")
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert "fedarena" not in code
    monkeypatch.chdir(out)
    names = {}
    exec(code, names)  # noqa: S102  the docs are our own
    features = names["features"]
    assert torch.allclose(features.norm(dim=-1), torch.ones(1), atol=1e-5)
    torch.testing.assert_close(
        names["logits"], expected_logits(run, features), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("learner", ["coop", "kgcoop", "proda", "promptfolio", "zero_shot"])
def test_linear_methods_export_their_scores(make_config, tmp_path, learner):
    run = finished(make_config, f"learner={learner}")
    export_classifier(run, tmp_path)
    tensors = load_file(tmp_path / "classifier.safetensors")
    features = torch.nn.functional.normalize(torch.eye(32)[:5] + 0.1, dim=-1)
    logits = tensors["logit_scale"] * features @ tensors["class_weights"]
    torch.testing.assert_close(logits, expected_logits(run, features), rtol=1e-4, atol=1e-4)


def test_classes_stand_in_the_order_of_the_columns(make_config, tmp_path):
    run = finished(make_config)
    export_classifier(run, tmp_path)
    about = json.loads((tmp_path / "classes.json").read_text())
    assert about["classes"] == ["blue", "green", "red"]
    assert about["run"] == run.name
    assert load_file(tmp_path / "classifier.safetensors")["class_weights"].shape == (32, 3)


def test_weights_that_depend_on_the_image_are_refused(make_config, tmp_path):
    run = finished(make_config, "learner=cocoop")
    with pytest.raises(StateError, match="depend on the image"):
        export_classifier(run, tmp_path)
    assert not (tmp_path / "classifier.safetensors").exists()


def test_clients_that_train_alone_share_nothing(make_config, tmp_path):
    run = finished(make_config, "federation=local_only")
    with pytest.raises(StateError, match="no shared model"):
        export_classifier(run, tmp_path)
    with pytest.raises(StateError, match="shares no tensors"):
        export_shared(run, tmp_path)


def test_the_command_writes_below_the_run(make_config):
    run = finished(make_config)
    done = CliRunner().invoke(
        main, ["export", run.name, "--as", "classifier", "--folder", str(run.parent)]
    )
    assert done.exit_code == 0, done.output
    written = {path.name for path in (run / "export").iterdir()}
    assert written == {"classifier.safetensors", "classes.json"}
    weights = load_file(run / "export" / "classifier.safetensors")["class_weights"]
    torch.testing.assert_close(weights.norm(dim=0), torch.ones(3))


def test_only_a_classifier_goes_into_the_file_of_the_head():
    names = ("head.weight", "head.bias", "layer.0.multi_head.q.lora_A", "layer.0.head.q.lora_A")
    assert set(head_of(dict.fromkeys(names, torch.ones(1)))) == {"weight", "bias"}
