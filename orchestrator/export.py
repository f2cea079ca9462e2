"""Files that a finished run leaves for others: final parameters, tables, a picture of the data."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from orchestrator.results import Result
from scenarios.picture import picture
from scenarios.population import Population


def export_run(result: Result) -> dict[str, Path]:
    """Write the exports into the run's folder; artifact name -> path, for tracking.

    shared.safetensors: the final shared tensors. clients.csv: accuracy of each client's model on
    its own test data, last round. summary.json: the numbers of the final table.
    """
    folder = result.folder
    found = {
        "config.yaml": folder / "config.yaml",
        "population.parquet": folder / "population.parquet",
    }
    if result.parameters:
        found["shared.safetensors"] = folder / "shared.safetensors"
        save_file(result.parameters, found["shared.safetensors"])
    found["population.png"] = folder / "population.png"
    if not found["population.png"].exists():
        population = Population.load(folder / "population.parquet")
        picture(population).savefig(found["population.png"], dpi=120)
    found["clients.csv"] = folder / "clients.csv"
    found["clients.csv"].write_text(_client_table(result))
    found["summary.json"] = folder / "summary.json"
    found["summary.json"].write_text(json.dumps(result.summary, indent=2, sort_keys=True))
    return found


def _client_table(result: Result) -> str:
    import pandas as pd

    table = pd.DataFrame(dict(result.last.client_metrics))
    table.index.name = "client"
    return table.to_csv()
