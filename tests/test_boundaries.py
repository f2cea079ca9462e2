"""What may know what, and what the command line may cost before it does anything."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODEL_LIBRARIES = {"open_clip", "transformers", "peft", "timm", "torchvision"}


def loaded_by(statement):
    """Top-level names of all modules that a fresh interpreter holds after ``statement``."""
    code = f"import sys\n{statement}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import fl_core.round, fl_core.local, fl_core.learners, fl_core.predict",
        "import scenarios.scenario, scenarios.evaluate, scenarios.features, scenarios.encode",
    ],
)
def test_the_mathematics_and_the_data_load_no_ray_mlflow_or_pydantic(statement):
    heavy = {
        "ray",
        "mlflow",
        "pydantic",
        "open_clip",
        "transformers",
        "peft",
        "timm",
        "torchvision",
    }
    assert not heavy & loaded_by(statement)


def test_a_client_actor_loads_neither_open_clip_nor_mlflow():
    assert not {"mlflow", "pydantic", *MODEL_LIBRARIES} & loaded_by("import orchestrator.client")


def test_the_command_line_loads_nothing_heavy_before_a_command_needs_it():
    assert not {"torch", "ray", "mlflow", "pydantic", "numpy"} & loaded_by(
        "import orchestrator.cli"
    )


def test_no_file_names_a_folder_of_the_machine_it_was_written_on():
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    suspects = []
    for name in names.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".json"} and path.exists():
            text = path.read_text(errors="ignore")
            suspects += [name for word in ("/" + "work/", "/" + "root/") if word in text]
    assert suspects == []
