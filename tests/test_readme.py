"""What the README says can be typed works as typed."""

import csv
import dataclasses
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from gnexp.cli.app import HELP
from gnexp.config.schema import TrainConfig
from gnexp.norms.registry import NORMS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PRESETS = sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml"))
SMALL = ("data.train_limit=40", "data.test_limit=20", "epochs=1", "gradients=0", "batch=10")


def test_every_key_in_the_table_of_the_readme_exists():
    table = README.split("| key |")[1].split("\n\n")[0]
    keys = [
        k for row in table.splitlines()[2:] for k in re.findall(r"`([a-z_]+)`", row.split("|")[1])
    ]
    known = {field.name for field in dataclasses.fields(TrainConfig)} | {"experiment"}
    assert len(keys) > 15
    assert set(keys) <= known


def test_the_readme_names_every_preset_and_no_other():
    (row,) = [line for line in README.splitlines() if line.startswith("| `experiment` |")]
    assert sorted(re.findall(r"`([a-z_]+)`", row.split("|")[2])) == PRESETS


def test_the_norm_of_ones_own_in_the_readme_trains(gnexp, workdir):
    code = re.search(r"```python\n(# my_norm.py.*?)```", README, re.DOTALL)[1]
    (workdir / "my_norm.py").write_text(code)
    try:
        answer = gnexp("train", "norm._target_=my_norm.MaxNorm", "norm.eps=1e-3", *SMALL)
    finally:
        sys.modules.pop("my_norm", None)
        sys.path[:] = [p for p in sys.path if p != str(workdir)]
    assert answer.code == 0, answer.err


def single_runs():
    """The README's train commands for one run: of those Hydra shows the config."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    typed = [shlex.split(line, comments=True)[2:] for line in lines if "gnexp train" in line[:11]]
    return [words for words in typed if not {"-m", "--multirun"} & set(words)]


@pytest.mark.parametrize("words", single_runs(), ids=" ".join)
def test_every_single_run_of_the_readme_composes(words, gnexp):
    answer = gnexp("train", "--cfg", "job", *words)
    assert answer.code == 0, answer.err
    assert yaml.safe_load(answer.out)["batch"] >= 1


def test_the_figures_and_files_that_the_readme_links_to_are_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_check_quoted_in_the_readme_is_the_published_one():
    with open(ROOT / "results" / "reference" / "check" / "check.csv", newline="") as file:
        published = {(row["claim"], row["text"], row["norm"]): row for row in csv.DictReader(file)}
    section = README.split("## What the article claims, what we measured")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert len(lines) > 15
    for line in lines:
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        cells = [re.sub(r"\\(.)", r"\1", cell).strip().strip("*") for cell in cells]
        claim, text, *quoted = cells
        gn, bn = (published[claim, text, norm] for norm in ("GN(8)", "BN"))
        assert quoted == [gn["measured"], gn["verdict"], bn["measured"], bn["verdict"]]


def test_the_readme_counts_the_statements_of_the_published_check():
    with open(ROOT / "results" / "reference" / "check" / "check.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    statements = {(row["claim"], row["statement"]) for row in rows}
    section = README.split("## What the article claims, what we measured")[1].split("\n## ")[0]
    quoted = [line for line in section.splitlines() if re.match(r"\| \d+ \|", line)]
    norms = len({row["norm"] for row in rows})
    assert f"{len(quoted)} of {len(statements)} statements, each for {norms} norms" in section


def test_a_bench_of_a_modified_tree_says_so_where_it_is_quoted():
    section = README.split("## How fast it is")[1].split("\n## ")[0]
    quoted = re.findall(r"\]\((results/reference/\S+/bench\.md)\)", section)
    versions = [re.search(r"gnexp \S+ \((.*?)\)", (ROOT / path).read_text())[1] for path in quoted]
    assert len(versions) == 3
    for version in versions:
        commit, _, changed = version.partition(", ")
        told = re.search(rf"{commit[:7]}( with uncommitted\s+changes)?", section)
        assert bool(told[1]) == bool(changed)


def test_the_list_of_norms_is_that_of_the_table():
    path = ROOT / "scripts" / "norm_table.py"
    spec = importlib.util.spec_from_file_location("norm_table", path)
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    assert table.with_table(README) == README, "run: python scripts/norm_table.py"
    listed = re.findall(r"^\| `(\w+)` \|", table.markdown(), re.MULTILINE)
    assert listed == list(NORMS)
    assert all(f"| `{name}` |" in README for name in NORMS)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_and_stands_in_the_help(preset, gnexp):
    answer = gnexp("train", f"experiment={preset}", "--cfg", "job")
    assert answer.code == 0, answer.err
    assert yaml.safe_load(answer.out)["study"]
    assert re.search(rf"\b{preset}\b", HELP)


def test_the_help_lists_every_norm_and_the_preset_of_all_norms_trains_every_one():
    listed = HELP.split("  norm ")[1].split(";")[0].split()
    assert listed == list(NORMS)
    swept = OmegaConf.load(ROOT / "configs" / "experiment" / "all_norms.yaml")
    assert re.split(r",\s*", swept.hydra.sweeper.params.norm) == list(NORMS)
