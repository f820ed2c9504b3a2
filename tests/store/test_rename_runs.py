"""A study whose runs have names of another rule is renamed, and then goes on as if it never had."""

import json
import runpy
from pathlib import Path

import pytest

from gnexp.runner.checkpoint import load_states, save_states
from gnexp.store.digests import FILE
from gnexp.store.run import Run

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "rename_runs.py"
RENAME = runpy.run_path(str(SCRIPT))["main"]
STUDY = Path("results/main")
TRAIN = ("train", "model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=20")
TRAIN += ("batch=10", "epochs=1", "gradients=0", "workers=1")


def give_old_name(run: Run) -> Run:
    """Rename a run as another rule would have, in its files and its checkpoint too; no digests."""
    old = run.folder.with_name(run.name[:-8] + "0123abcd")
    states = load_states(run)
    for state in states.values():
        state["step"] = [member.replace(run.name, old.name) for member in state["step"]]
    save_states(run, states)
    for name in ("result.json", "plan.json"):
        path = run.folder / name
        path.write_text(path.read_text().replace(run.name, old.name))
    stored = json.loads((run.folder / "result.json").read_text())
    del stored["config"]["convert"]
    (run.folder / "result.json").write_text(json.dumps(stored))
    (run.folder / FILE).unlink()
    return Run(run.folder.rename(old))


def test_renamed_runs_are_complete_and_whole_and_a_study_at_work_is_left_as_it_is(gnexp, capfd):
    assert gnexp(*TRAIN, "norm=bn", "seeds=2").code == 0
    (path,) = STUDY.glob("bn-*/result.json")
    name, run = path.parent.name, give_old_name(Run(path.parent))
    with run.lock(0), pytest.raises(SystemExit, match="is being trained"):
        RENAME([STUDY])
    before = run.rows("metrics.csv"), run.result()["seeds"]
    RENAME([STUDY])
    assert "1 of 1 renamed" in capfd.readouterr().out
    now = Run(STUDY / name)
    assert (now.result()["run"], now.result()["config"]["convert"]["only"]) == (name, None)
    steps = [state["step"] for state in load_states(now).values()]
    assert steps == [[f"{name}/0", f"{name}/1"]] * 2
    assert gnexp("verify").code == 0
    assert gnexp(*TRAIN, "norm=bn", "seeds=3").code == 0
    assert now.finished_seeds() == [0, 1, 2]
    rows = [row for row in now.rows("metrics.csv") if row["seed"] < 2]
    assert rows == before[0], "with their times: neither was trained again"
    metrics = STUDY / name / "metrics.csv"
    metrics.write_text(metrics.read_text().replace("1", "2"))
    with pytest.raises(SystemExit, match="was changed since it was written"):
        RENAME([STUDY])
