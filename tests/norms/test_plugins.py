"""Norms that other packages register are norms like any other, and bad ones harm nobody else."""

import csv
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from study_reports import build_report
from torch import nn

import gnexp as api
from gnexp.checks.registry import CLAIMS
from gnexp.config.identity import as_dict
from gnexp.models.conversion.convert import convert
from gnexp.norms.plugins import plugins, unknown_norm, unreadable
from gnexp.norms.trials import try_norm
from gnexp.runner.build.data import images_of

ROOT = Path(__file__).resolve().parents[2]
TINY = ("model=resnet8", "model.width=8", "data.train_limit=40", "data.test_limit=20")
TINY += ("epochs=1", "batch=10", "gradients=0", "workers=1")
COUNT = itertools.count()

NORMS = """
import torch
from torch import nn


class Root(nn.Module):
    def __init__(self, channels, power=2, eps=1e-5):
        super().__init__()
        self.power, self.eps = power, eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        scale = x.abs().pow(self.power).mean((1, 2, 3), keepdim=True) + self.eps
        return x / scale ** (1 / self.power) * self.weight[:, None, None]


class NeedsMore(Root):
    def __init__(self, channels, radius):
        super().__init__(channels)


class Exits(Root):
    def __init__(self, channels):
        raise SystemExit("no licence")


class NotAModule:
    def __init__(self, channels):
        pass


class Pair(Root):
    def forward(self, x):
        return x, x


class Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise ArithmeticError("no way back")


class Pairs(Root):
    def forward(self, x):
        if len(x) < 2:
            raise ValueError("two examples, please")
        return super().forward(x)


number = 3
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution in a folder on sys.path: {name: "MODULE:CLASS"}; return MODULE.

    In the values MODULE is a module with the norms above, unless `source` is another.
    """

    def install(points: dict[str, str], source: str = NORMS, package: str = "pkg") -> str:
        module = f"plugged_{next(COUNT)}"  # a module is imported once per process
        folder = tmp_path / module
        info = folder / f"{package}-1.5.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        lines = [f"{n} = {v.replace('MODULE', module)}" for n, v in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[gnexp.norms]", *lines, ""]))
        monkeypatch.syspath_prepend(str(folder))
        return module

    before = [*sys.path]
    yield install
    sys.path[:] = before
    importlib.invalidate_caches()


@pytest.fixture(autouse=True)
def no_report_after_a_grid(monkeypatch):
    """Figures take seconds, and are the same whatever norm they are of."""
    monkeypatch.setattr("gnexp.cli.commands.train.make_report", lambda *args: "")


def read_csv(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def stored_norms() -> list[dict]:
    folders = [path.parent for path in Path("results/main").glob("*/result.json")]
    return [yaml.safe_load((f / "config.yaml").read_text())["norm"] for f in sorted(folders)]


def test_a_plug_in_trains_by_its_name_as_by_its_import_path(gnexp, install):
    module = install({"root": "MODULE:Root"})
    answer = gnexp("train", "norm=root", "norm.power=3", *TINY)
    assert answer.code == 0, answer.err
    assert "Root, batch 10: " in answer.out
    assert stored_norms() == [{"name": "custom", "_target_": f"{module}.Root", "power": 3}]
    again = gnexp("train", f"norm._target_={module}.Root", "norm.power=3", *TINY)
    assert again.code == 0
    assert len(stored_norms()) == 1  # it is the same run


def test_a_plug_in_is_swept_beside_norms_of_the_table_with_common_options(gnexp, install):
    module = install({"my-root": "MODULE:Root"})
    answer = gnexp("train", "-m", "norm=gn,my-root", "norm.eps=1e-3,1e-5", *TINY)
    assert answer.code == 0, answer.err
    own = {"name": "custom", "_target_": f"{module}.Root"}
    wanted = [{**norm, "eps": eps} for norm in (own, {"name": "gn"}) for eps in (1e-3, 1e-5)]
    assert all(norm in stored_norms() for norm in wanted)
    assert len(stored_norms()) == 4


def test_build_norm_and_convert_take_a_plug_in_by_its_name(install):
    module = install({"root": "MODULE:Root"})
    layer = api.build_norm("root", 4, power=3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for each in (layer, convert(model, "root", power=3).model[1]):
        assert (type(each).__module__, each.weight.shape, each.power) == (module, (4,), 3)


def test_the_error_about_an_unknown_norm_lists_plug_ins_and_the_nearest_may_be_one(gnexp, install):
    install({"root": "MODULE:Root", "gn": "MODULE:Root", "flat": "MODULE"})
    answer = gnexp("train", "norm=rooot", *TINY)
    assert answer.code == 2
    assert "norm=rooot is unknown; did you mean root? Valid: bn, " in answer.err
    assert answer.err.endswith("; plug-ins: root; plug-ins that cannot be used: flat, gn\n")
    with pytest.raises(ValueError, match="norm=rooot is unknown; did you mean root"):
        api.build_norm("rooot", 4)


def test_a_broken_plug_in_harms_no_norm_but_itself(gnexp, install):
    install({"broken": "MODULE:Root"}, source="raise SystemError('out of order')", package="bad")
    install({"root": "MODULE:Root"})
    assert gnexp("train", "-m", "norm=gn,root", *TINY).code == 0
    answer = gnexp("train", "norm=broken", *TINY)
    assert answer.code == 2
    assert "of bad 1.5): importing it raised SystemError: out of order" in answer.err


UNREADABLE = {
    "entry points that are no text": ("entry_points.txt", b"[gnexp.norms]\nodd = \xff:Root\n"),
    "entry points without a value": ("entry_points.txt", b"[other.group]\nodd\n"),
    "metadata that is no text": ("METADATA", b"Name: caf\xe9\nVersion: 1\n"),
    "empty metadata": ("METADATA", b""),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_package_whose_metadata_cannot_be_read_is_passed_over_and_named(kind, install, tmp_path):
    name, content = UNREADABLE[kind]
    bad = install({"odd": "MODULE:Root"}, package="bad")
    (tmp_path / bad / "bad-1.5.dist-info" / name).write_bytes(content)
    install({"root": "MODULE:Root"})
    assert list(plugins()) == ["root"]
    (sentence,) = unreadable()
    assert "bad-1.5.dist-info" in sentence
    assert sentence in unknown_norm("odd", ["gn"])


def fresh(folder, *words):
    """Run gnexp in a fresh process, with a folder of installed packages."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "gnexp", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def test_a_fresh_training_goes_on_beside_packages_that_are_broken(install, workdir, tmp_path):
    """PyTorch and Hydra look up what is installed, each for itself."""
    folder = tmp_path / "site"
    files = {
        "bytes-1.dist-info/entry_points.txt": bytes(range(128, 256)),
        "latin-1.dist-info/entry_points.txt": "[gnexp.norms]\nn\xe9 = a:b\n".encode("latin-1"),
        "nameless-1.dist-info/entry_points.txt": b"[gnexp.norms]\nroot = there:Norm\n",
        "gone-1.dist-info/entry_points.txt": b"[torch.backends]\nx = not_there:start\n",
        "raising-1.dist-info/entry_points.txt": b"[torch.backends]\ny = raises:start\n",
        "raises.py": b"raise ArithmeticError('no device')\n",
        "hydra_plugins/broken/__init__.py": b"raise ArithmeticError('no plug-in')\n",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    done = fresh(folder, "train", "norm=gn", "device=cpu", *TINY)
    assert done.returncode == 0, done.stderr
    told = {name for name in ("bytes-1", "latin-1", "nameless-1") if f"{name}.dist" in done.stderr}
    assert told == {"bytes-1", "latin-1", "nameless-1"}
    lines = done.stderr.splitlines()
    assert all(line.startswith("gnexp: ") for line in lines)
    (line,) = [line for line in lines if "a plug-in of Hydra" in line]
    assert "hydra_plugins.broken" in line
    assert "ArithmeticError: no plug-in" in line
    assert len(lines) == 4
    assert stored_norms()


@pytest.mark.parametrize("code", ["x = (", "raise SystemExit(3)"])
def test_a_plug_in_of_hydra_that_is_broken_keeps_no_command_from_its_work(code, workdir, tmp_path):
    (tmp_path / "hydra_plugins" / "broken").mkdir(parents=True)
    (tmp_path / "hydra_plugins" / "broken" / "__init__.py").write_text(code)
    done = fresh(tmp_path, "status", "study=none")
    assert done.returncode == 2
    assert "study=none does not exist" in done.stderr.splitlines()[-1]
    assert "hydra_plugins.broken" in done.stderr
    assert "Traceback" not in done.stderr


def test_looking_up_plug_ins_imports_none(install):
    module = install({"root": "MODULE:Root"})
    assert plugins()["root"].target == f"{module}.Root"
    assert module not in sys.modules


def test_a_name_of_the_table_stays_gnexps_and_a_sentence_says_so(gnexp, install):
    module = install({"gn": "MODULE:Pair"})
    assert isinstance(api.build_norm("gn", 8), nn.GroupNorm)
    answer = gnexp("train", "norm=gn", *TINY)
    assert answer.code == 0
    assert stored_norms()[0]["name"] == "gn"
    assert answer.err == (
        f"gnexp: norm=gn is gnexp's own: {module}.Pair of pkg 1.5 has the same name and is not"
        f" used; type norm._target_={module}.Pair for it\n"
    )


def test_a_name_that_two_packages_register_is_refused_and_both_are_named(gnexp, install):
    one = install({"root": "MODULE:Root"}, package="one")
    two = install({"root": "MODULE:Root"}, package="two")
    answer = gnexp("train", "norm=root", *TINY)
    assert answer.code == 2
    assert f"one 1.5 ({one}:Root)" in answer.err
    assert f"two 1.5 ({two}:Root)" in answer.err
    assert "norm._target_=" in answer.err


BAD = {
    "missing": ("MODULE:Missing", "MODULE has no Missing"),
    "gone": ("nowhere_at_all:Root", "cannot be imported: No module named 'nowhere_at_all'"),
    "module": ("MODULE", "is registered as 'MODULE', which must be MODULE:CLASS"),
    "9lives": ("MODULE:Root", "cannot be typed: a plug-in's name is a letter, then"),
    "number": ("MODULE:number", "is not a class or function"),
    "more": ("MODULE:NeedsMore", "raised TypeError when called with (8): "),
    "exits": ("MODULE:Exits", "raised SystemExit when called with (8): no licence"),
    "thing": ("MODULE:NotAModule", "must return an nn.Module, not NotAModule"),
    "pair": ("MODULE:Pair", "returns a tuple in training, not one tensor"),
}
# The forward pass of a norm, and what is said of it.
BAD_PASSES = {
    "x[:, :, 1:]": "returns the shape (2, 8, 7, 8) for (2, 8, 8, 8) in training",
    "x.double()": "returns the dtype torch.float64 for torch.float32 in training",
    "{}['statistics']": "raised KeyError ('statistics') in a forward pass of (2, 8, 8, 8)",
    "x if self.training else x.gone": "has no attribute 'gone') in a forward pass of (2, 8, 8, 8)"
    " in evaluation",
    "x / 0 * 0": "returns values that are not finite for normal ones in training",
    "x.detach()": "returns what has no gradient",
    "self.weight[:, None, None].expand(x.shape)": "returns what does not depend on its input",
    "Back.apply(x)": "raised ArithmeticError (no way back) in a backward",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_plug_in_is_refused_with_the_reason_before_a_grid_starts(name, gnexp, install):
    value, reason = BAD[name]
    module = install({name: value})
    words = (f"norm={name}",) if name == "9lives" else ("-m", f"norm=gn,{name}")
    answer = gnexp("train", *words, *TINY)
    assert answer.code == 2
    (sentence,) = answer.err.strip().splitlines()
    assert f"norm={name}" in sentence
    assert reason in sentence.replace(module, "MODULE")
    assert not Path("results").exists()


@pytest.mark.parametrize("returned", BAD_PASSES)
def test_a_norm_whose_passes_no_network_can_use_is_refused_with_the_reason(returned, install):
    own = f"\n\nclass Bad(Root):\n    def forward(self, x):\n        return {returned}\n"
    module = importlib.import_module(install({}, NORMS + own))
    with pytest.raises(ValueError) as refused:
        try_norm(module.Bad(8), 8)
    assert BAD_PASSES[returned] in str(refused.value)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_norm_is_tried_with_no_more_examples_than_the_batch_has(batch, gnexp, install):
    install({"pairs": "MODULE:Pairs"})
    words = [word for word in TINY if not word.startswith("batch=")]
    answer = gnexp("train", "norm=pairs", f"batch={batch}", *words)
    assert answer.code == 0
    assert ("infeasible: " in answer.out) == (batch == 1)
    assert ("two examples, please" in answer.out) == (batch == 1)


def test_trying_a_norm_leaves_the_random_state_as_it_was(install):
    from gnexp.config.schema import ModelConfig, TrainConfig
    from gnexp.runner.build.model import try_own_norm

    module = install({})
    norm = {"name": "custom", "_target_": f"{module}.Root"}
    config = TrainConfig(norm=norm, model=ModelConfig("resnet8", 8))
    images = images_of(config.data).summary
    before = torch.get_rng_state()
    try_own_norm(config, images)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("way", ["by name", "handed on", "before its first training"])
def test_an_edited_norm_is_imported_anew_in_the_same_process(way, gnexp, install, workdir):
    module = install({"root": "MODULE:Root"})
    (workdir / "hands_on.py").write_text(f"from {module} import Root\n")
    target = "hands_on.Root" if way == "handed on" else f"{module}.Root"
    norm = "norm=root" if way == "by name" else f"norm._target_={target}"
    try:
        if way == "before its first training":
            importlib.import_module(module)
        else:
            assert gnexp("train", norm, *TINY).code == 0
        path = Path(sys.modules[module].__file__)
        path.write_text(path.read_text() + "\nRoot.forward = Pair.forward  # edited\n")
        answer = gnexp("train", norm, *TINY)
        assert answer.code == 2
        assert "returns a tuple in training, not one tensor" in answer.err
    finally:
        sys.modules.pop("hands_on", None)


def test_a_module_of_this_folder_is_refused_when_its_namesake_was_imported(
    gnexp, workdir, monkeypatch
):
    for folder in ("one", "two"):
        (workdir / folder).mkdir()
        (workdir / folder / "namesake.py").write_text(NORMS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        monkeypatch.chdir(workdir / "one")
        assert gnexp("train", "norm._target_=namesake.Root", *TINY).code == 0
        monkeypatch.chdir(workdir / "two")
        answer = gnexp("train", "norm._target_=namesake.Root", *TINY)
    finally:
        sys.modules.pop("namesake", None)
    assert answer.code == 2
    assert "namesake.py of this folder is not the namesake that was imported before" in answer.err
    assert not Path("results").exists()


def test_trainings_under_different_code_or_options_of_ones_own_are_never_averaged(gnexp, install):
    module = install({})
    words = ("train", f"norm._target_={module}.Root", *TINY)
    path = Path(importlib.util.find_spec(module).origin)
    assert gnexp(*words, "seeds=[0,1]").code == 0
    assert gnexp(*words, "seeds=[2,3]", "norm.eps=0.1").code == 0  # 1e-5 if it is not typed
    path.write_text(path.read_text() + "# edited\n")
    assert gnexp(*words, "seeds=[1,4]").code == 0
    rows = read_csv(build_report(Path("results/main"))["accuracy.csv"])
    assert [row["n"] for row in rows] == ["2", "2", "2"]
    assert sorted(row["norm.eps"] for row in rows) == ["0.1", "default", "default"]
    codes = [row["norm.code"] for row in rows if row["norm.eps"] == "default"]
    assert len(set(codes)) == 2
    page = Path("results/main/report/index.html").read_text()
    assert all(f"Root, norm code (version {n}), eps=default" in page for n in (1, 2))


def test_code_edited_while_a_training_waits_is_not_trained_under_the_old_name(
    gnexp, install, monkeypatch
):
    module = install({})
    words = ("train", f"norm._target_={module}.Root", *TINY)
    path = Path(importlib.util.find_spec(module).origin)

    def edit(config):
        if not path.read_text().endswith("# edited\n"):
            path.write_text(path.read_text() + "# edited\n")
        return as_dict(config)

    monkeypatch.setattr(
        "gnexp.runner.execute.as_dict", edit
    )  # it is called once the runs are planned
    answer = gnexp(*words)
    assert answer.code == 1
    assert "the code of its norm was edited after this call had begun: call again" in answer.out


def test_the_file_of_a_partial_is_part_of_the_runs_identity(install):
    from gnexp.config.schema import TrainConfig
    from gnexp.runner.build.code_digest import code_checksum

    module = install({})
    path = Path(importlib.util.find_spec(module).origin)
    path.write_text(NORMS + "\nimport functools\n\nCubic = functools.partial(Root, power=3)\n")
    config = TrainConfig(norm={"name": "custom", "_target_": f"{module}.Cubic"})
    before = code_checksum(config)
    path.write_text(path.read_text() + "# edited\n")
    assert before
    assert before != code_checksum(config)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("norm=frn norm.momentum=1", "option of norm=frn; did you mean norm.eps? Valid: norm.eps;"),
        ("norm=gn norm.num_groups=4", "is not an option of norm=gn; did you mean groups?"),
        ("norm=none norm.eps=1", "norm.eps is not an option of norm=none, which has none"),
        ("norm=gn +norm.epsi=1", "norm.epsi is not an option of norm=gn; did you mean norm.eps?"),
        ("-m norm=root,gn norm.power=3", "norm.power is not an option of norm=gn"),
        ("norm=null", "norm=null is unknown; did you mean"),
        ("norm._target_=null", "norm._target_=None must be MODULE.NAME"),
    ],
)
def test_a_mistake_about_a_norm_names_what_that_norm_takes(words, said, gnexp, install, workdir):
    install({"root": "MODULE:Root"})
    answer = gnexp("train", *words.split(), *TINY)
    assert answer.code == 2
    assert said in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (workdir / "results").exists()


def test_what_is_within_a_norm_starts_as_it_was_built(install):
    from gnexp.config.schema import ModelConfig, TrainConfig
    from gnexp.models.weight_standardization import StandardizedConv2d
    from gnexp.runner.build.model import seeded_model

    gated = """
class Gated(Root):
    def __init__(self, channels):
        super().__init__(channels)
        self.gate = nn.Conv2d(channels, channels, 1)
        self.mix = nn.Linear(channels, channels)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, 3.0)
        nn.init.eye_(self.mix.weight)

    def forward(self, x):
        scale = self.mix(x.mean((2, 3)))[:, :, None, None]
        return super().forward(x) * self.gate(x).sigmoid() + 0 * scale
"""
    module = install({}, NORMS + gated)
    norm = {"name": "custom", "_target_": f"{module}.Gated"}
    config = TrainConfig(norm=norm, model=ModelConfig("resnet8", 8), weight_standardization=True)
    built = seeded_model(config, images_of(config.data).summary, seed=0)
    layers = [layer for layer in built.modules() if type(layer).__name__ == "Gated"]
    assert len(layers) == 7
    for layer in layers:
        assert type(layer.gate) is nn.Conv2d
        assert layer.gate.weight.abs().max() == 0
        assert (layer.gate.bias == 3).all()
        assert torch.equal(layer.mix.weight, torch.eye(len(layer.mix.weight)))
    assert isinstance(built.conv1, StandardizedConv2d)


def test_a_module_that_exits_when_it_is_imported_is_refused(gnexp, workdir):
    (workdir / "exits.py").write_text("import sys\n\nsys.exit(7)\n")
    answer = gnexp("train", "norm._target_=exits.Norm", *TINY)
    assert answer.code == 2
    assert "norm._target_=exits.Norm: importing it raised SystemExit: 7" in answer.err


def test_the_page_on_a_norm_of_ones_own_is_true(gnexp, workdir, install):
    page = (ROOT / "README.md").read_text().split("\n## Your norm\n")[1].split("\n## ")[0]
    page += (ROOT / "gnexp" / "norms" / "README.md").read_text()
    source = re.search(r"```python\n(# my_norm.py.*?)```", page, re.DOTALL)[1]
    group, name, value = re.search(
        r'```toml\n\[project.entry-points."([\w.]+)"\]\n(\w+) = "(.+?)"\n```', page
    ).groups()
    assert group == "gnexp.norms"
    commands = re.search(r"```bash\n(.*?)```", page, re.DOTALL)[1].splitlines()
    assert [line.split()[1] for line in commands] == ["check", "train", "train", "report"]
    (workdir / "my_norm.py").write_text(source)
    less = {"check": ("claims=[core]", "workers=1"), "train": TINY, "report": ()}
    try:
        for line in commands:
            _, command, *words = shlex.split(line, comments=True)
            words = [w for w in words if not (command == "train" and w.startswith("batch="))]
            answer = gnexp(command, *words, *less[command])
            assert answer.code == 0, (line, answer.err)
        assert (workdir / "results" / "mine" / "report" / "index.html").is_file()
        install({name: value})
        answer = gnexp("train", "-m", f"norm=gn,{name}", *TINY)
        assert answer.code == 0, answer.err
        assert f"`gnexp train -m norm=gn,{name}`" in page
        answer = gnexp("check", f"norm={name}", "norm.eps=1e-3", "claims=[core]", "workers=1")
        assert answer.code == 0, answer.err
        assert api.build_norm(name, 64).weight.shape == (64,)
    finally:
        sys.modules.pop("my_norm", None)
        sys.path[:] = [p for p in sys.path if p != str(workdir)]
    assert set(re.search(r"claims=\[([a-z,]+)\]", page)[1].split(",")) <= set(CLAIMS)
