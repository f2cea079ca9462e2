"""Rows and their names: seeds of one method are one row, and no two rows have one name."""

from dataclasses import replace

from fl_core.learners import CoOp, KgCoOp
from orchestrator.config import ExperimentConfig, Tracking
from orchestrator.labels import result_settings
from orchestrator.report.gather import Found, rows_of
from orchestrator.report.listing import changed_settings


def test_where_a_run_is_kept_makes_no_other_row(tmp_path):
    plain = ExperimentConfig(name="m", folder=tmp_path)
    elsewhere = replace(
        plain,
        seed=1,
        store=tmp_path / "store",
        mirror="s3://bucket/runs",
        shared_store="s3://bucket/store",
        tracking=Tracking(enabled=False),
    )
    assert result_settings(plain) == result_settings(elsewhere)
    (row,) = rows_of([Found(plain), Found(elsewhere)])
    assert (row.method, sorted(row.configs)) == ("m", [0, 1])
    assert changed_settings(replace(elsewhere, seed=0)) == {"name": "m"}


def test_rows_of_one_name_are_counted_where_their_settings_do_not_fit_a_name():
    learners = [KgCoOp(), *(CoOp(num_tokens=number) for number in (4, 8, 16))]
    rows = rows_of([Found(ExperimentConfig(name="m", learner=learner)) for learner in learners])
    names = [row.method for row in rows]
    told = [f"m (learner={name}" for name in ("coop)", "coop) #2", "coop) #3", "kgcoop)")]
    assert names == told
