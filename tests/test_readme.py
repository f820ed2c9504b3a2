"""What the READMEs say can be typed works as typed, and what they link to is there."""

import csv
import dataclasses
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from gnexp.cli.app import HELP
from gnexp.config.schema import TrainConfig
from gnexp.norms.registry import NORMS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
FOLDERS = ("configs", "gnexp", "results", "scripts", "tests")
READMES = [ROOT / "README.md", *sorted(p for f in FOLDERS for p in ROOT.glob(f"{f}/**/README.md"))]
PRESETS = sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml"))


def test_every_key_in_a_table_of_keys_exists():
    rows = [
        row for path in READMES for row in re.split(r"(?m)^\| key \|.*\n", path.read_text())[1:]
    ]
    rows = [row for table in rows for row in table.split("\n\n")[0].splitlines()[1:]]
    keys = [k for row in rows for k in re.findall(r"`([a-z_]+)`", row.split("|")[1])]
    known = {field.name for field in dataclasses.fields(TrainConfig)} | {"experiment"}
    assert len(keys) > 25
    assert set(keys) <= known


def test_the_readme_has_at_most_200_lines():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("folder", [".", "configs"])
def test_the_readme_names_every_preset_and_no_other(folder):
    lines = (ROOT / folder / "README.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith("| `experiment` |")]
    assert sorted(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([a-z_ ]+)`", row)[1:]))) == PRESETS


def single_runs():
    """The READMEs' train commands for one run: of those Hydra shows the config."""
    texts = "\n".join(path.read_text() for path in READMES)
    blocks = re.findall(r"```bash\n(.*?)```", texts, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    typed = [shlex.split(line, comments=True)[2:] for line in lines if "gnexp train" in line[:11]]
    single = [" ".join(words) for words in typed if not {"-m", "--multirun"} & set(words)]
    return [line.split() for line in dict.fromkeys(single)]


@pytest.mark.parametrize("words", single_runs(), ids=" ".join)
def test_every_single_run_of_the_readme_composes(words, gnexp):
    answer = gnexp("train", "--cfg", "job", *words)
    assert answer.code == 0, answer.err
    assert yaml.safe_load(answer.out)["batch"] >= 1


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.*)", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", READMES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_figures_files_and_headings_that_a_readme_links_to_are_there(page):
    text = page.read_text()
    links = [*re.findall(r"\]\(([^)]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    for link in links:
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        there = page.parent / path if path else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


def test_the_readme_of_checks_counts_the_statements_of_the_published_check():
    with open(ROOT / "results" / "reference" / "check" / "check.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    statements = {(row["claim"], row["statement"]) for row in rows}
    norms = len({row["norm"] for row in rows})
    text = (ROOT / "gnexp" / "checks" / "README.md").read_text()
    assert f"{len(statements)} statements, each for {norms} norms" in text


def test_a_bench_of_a_modified_tree_says_so_where_it_is_quoted():
    page = ROOT / "gnexp" / "training" / "README.md"
    section = page.read_text().split("## How fast it is")[1].split("\n## ")[0]
    quoted = [page.parent / path for path in re.findall(r"\]\((\S+/bench\.md)\)", section)]
    versions = [re.search(r"gnexp \S+ \((.*?)\)", path.read_text())[1] for path in quoted]
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
    listed = table.README.read_text()
    assert table.with_table(listed) == listed, "run: python scripts/norm_table.py"
    assert re.findall(r"^\| `(\w+)` \|", listed, re.MULTILINE) == list(NORMS)


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
