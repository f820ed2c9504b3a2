"""A study may be a stranger's: what it holds is read, and no code of its choice is called."""

import json
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gnexp.cli import app
from gnexp.config.identity import restore, run_name
from gnexp.config.schema import ModelConfig, TrainConfig
from gnexp.runner.build import code_digest, data
from gnexp.runner.strange_code import named_code

SMALL = ("data.train_limit=24", "data.test_limit=20", "epochs=1", "gradients=0", "batch=8")
SMALL += ("workers=1", "device=cpu")
MARKS = "from pathlib import Path\nPath({!r}).touch()\n"
NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.Conv2d(3, 8, 8, 8, bias=False), nn.BatchNorm2d(8), nn.Flatten(),
                         nn.Linear(128, num_classes))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study of one small run, trained with nobody's own code."""
    there = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(there)
    try:
        assert app.main(["train", "norm=gn", "study=theirs", *SMALL]) == 0
    finally:
        os.chdir(before)
    return there / "results" / "theirs"


@pytest.fixture
def theirs(trained, workdir):
    """The folder of the only run of a study that came from elsewhere."""
    shutil.copytree(trained, workdir / "results" / "theirs")
    (run,) = (workdir / "results" / "theirs").glob("gn-*")
    (run / "digests.json").unlink()  # a stranger gives those of what he gives
    path, modules = list(sys.path), set(sys.modules)
    yield run
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.split(".")[0] in ("beside", "results"):
            del sys.modules[name]


def forge(run, norm=None, **model):
    """Let a stored run name other code, as a stranger can; return its folder."""
    result = json.loads((run / "result.json").read_text())
    if norm:
        result["config"]["norm"] = {"name": "custom", "_target_": norm}
    result["config"]["model"] |= model
    (run / "result.json").write_text(json.dumps(result))
    (run / "config.yaml").write_text(json.dumps(result["config"]))
    (run / "digests.json").unlink(missing_ok=True)
    return run


def named_as_its_code(run):
    """Give a forged run the name that its code has, which a stranger can compute too."""
    config = restore(json.loads((run / "result.json").read_text())["config"])
    checksum = data.images_of(config.data).checksum
    return run.rename(run.with_name(run_name(config, checksum, code_digest.code_checksum(config))))


def attack(kind, theirs, marker):
    """Make the stored run name code that touches a marker; return what is named."""
    touch = f"touch {marker}"
    if kind == "module beside the study":
        Path("beside.py").write_text(MARKS.format(str(marker)))
        forge(theirs, norm="beside.Norm")
        return "norm._target_=beside.Norm"
    if kind == "payload folder in the study":
        (theirs.parent / "payload").mkdir()
        (theirs.parent / "payload" / "__init__.py").write_text(MARKS.format(str(marker)))
        forge(theirs, _target_="results.theirs.payload.Net")
        return "model._target_=results.theirs.payload.Net"
    target, options = {
        "os.system": ("os.system", {"command": touch}),
        "a module's own import": ("torchvision.os.system", {"command": touch}),
        "a function of gnexp": (
            "gnexp.runner.strange_code.find_spec",
            {"name": "results.theirs.payload"},
        ),
    }[kind]
    forge(theirs, _target_=target, options=options)
    if kind == "a function of gnexp":  # finding a module below a package imports the package
        (theirs.parent / "__init__.py").write_text(MARKS.format(str(marker)))
        (theirs.parent / "payload").mkdir()
    return f"model._target_={target}"


KINDS = ("module beside the study", "payload folder in the study", "os.system")
KINDS += ("a module's own import", "a function of gnexp")


@pytest.mark.parametrize("kind", KINDS)
def test_measuring_a_strangers_study_calls_no_code_that_it_names(kind, theirs, gnexp, tmp_path):
    marker = tmp_path / "marker"
    named = attack(kind, theirs, marker)
    if kind == "os.system":  # whose digest is that of Python's own file
        named_as_its_code(theirs)
    answer = gnexp("measure", "study=theirs", "what=[decomposition,shift]", "shift.images=4")
    assert answer.code == 2
    assert f"study=theirs: it names {named}: " in answer.err
    assert "trust=true" in answer.err
    assert len(answer.err.splitlines()) == 1
    answer = gnexp("measure", "study=theirs", "gradients_at=[2]", "gradients=4")
    assert answer.code == 2
    assert named in answer.err
    assert not marker.exists()


@pytest.mark.parametrize("kind", KINDS[1:2])
def test_no_other_command_calls_code_that_a_study_names(kind, theirs, gnexp, tmp_path):
    marker = tmp_path / "marker"
    attack(kind, theirs, marker)
    start = f"init_from=results/theirs/{theirs.name}"
    gnexp("status", "study=theirs")
    gnexp("report", "study=theirs")
    gnexp("train", "norm=bn", "study=theirs", *SMALL)
    gnexp("train", "norm=gn", "study=theirs", "gradients_at=[2]", *SMALL)
    gnexp("train", "norm=gn", start, "study=mine", *SMALL)
    assert (Path("results/mine").is_dir(), marker.exists()) == (True, False)


def test_code_of_a_study_is_called_once_it_is_trusted_and_named(theirs, gnexp, tmp_path):
    marker = tmp_path / "marker"
    attack("os.system", theirs, marker)
    named_as_its_code(theirs)
    answer = gnexp("measure", "study=theirs", "what=[shift]", "shift.images=4", "trust=true")
    assert "trust=true: code of this study is called: model._target_=os.system" in answer.out
    assert marker.exists()  # the attack is a real one
    assert answer.code == 1
    assert "must build an nn.Module" in answer.out


@pytest.fixture
def mine(gnexp, workdir):
    """A study that is trained here with a model of one's own."""
    (workdir / "beside.py").write_text(NET)
    path = list(sys.path)
    answer = gnexp("train", "model._target_=beside.Net", "norm=gn", "study=mine", *SMALL)
    assert answer.code == 0, answer.err
    yield workdir / "results" / "mine"
    sys.path[:] = path
    sys.modules.pop("beside", None)


def test_a_study_that_was_trained_here_is_measured_without_a_question(mine, gnexp):
    answer = gnexp("measure", "study=mine", "what=[shift]", "shift.images=4", "device=cpu")
    assert answer.code == 0
    assert "trust" not in answer.out + answer.err
    (run,) = mine.glob("gn-*")
    assert (run / "shift.csv").exists()


def test_another_study_in_the_place_of_ones_own_is_not_trusted(mine, gnexp):
    (run,) = mine.glob("gn-*")
    forge(run, options={"num_classes": 10})
    answer = gnexp("measure", "study=mine", "what=[shift]", "shift.images=4")
    assert answer.code == 2
    assert "model._target_=beside.Net" in answer.err


def test_a_copy_of_ones_own_study_elsewhere_is_asked_about(mine, gnexp):
    mine.rename(mine.with_name("moved"))
    answer = gnexp("measure", "study=moved", "what=[shift]", "shift.images=4")
    assert answer.code == 2
    assert "trust=true" in answer.err
    trusted = gnexp("measure", "study=moved", "what=[shift]", "shift.images=4", "trust=true")
    assert trusted.code == 0, trusted.err


def test_training_with_ones_own_code_needs_no_state_folder(gnexp, workdir, monkeypatch):
    (workdir / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(workdir / "file"))
    (workdir / "beside.py").write_text(NET)
    words = ("model._target_=beside.Net", "norm=gn", "gradients_at=[2]", *SMALL)
    answer = gnexp("train", *words)
    sys.modules.pop("beside", None)
    assert answer.code == 0, answer.err
    assert "gnexp measure will ask for trust=true: " in answer.out
    (run,) = (workdir / "results" / "main").glob("gn-*")
    assert len((run / "gradients.csv").read_text().splitlines()) > 1


CONSTRUCTORS = ("torchvision.models.resnet18", "torchvision.models.resnet.resnet18")
CONSTRUCTORS += ("timm.models.resnet18", "timm.models.resnet.resnet18")
LAYERS = ("gnexp.norms.pointwise.PixelLayerNorm2d", "torchvision.ops.FrozenBatchNorm2d")
LAYERS += ("timm.layers.GroupNorm1", "timm.layers.norm.GroupNorm1")


@pytest.mark.parametrize("path", [*CONSTRUCTORS, *LAYERS])
def test_constructors_and_layers_of_the_libraries_are_nobodys_own_code(path):
    if path.startswith("timm"):
        pytest.importorskip("timm")
    custom = {"norm": {"name": "custom", "_target_": path}}
    whole = {"norm": {"name": "gn"}, "model": ModelConfig(_target_=path)}
    assert named_code(TrainConfig(**(custom if path in LAYERS else whole))) == []


@pytest.mark.parametrize(
    "path",
    [
        "torchvision.io.read_file",
        "torchvision.models.get_model",
        "torchvision.models.resnet._resnet",
        "torchvision.ops.misc.torch.load",
        "torchvision.models.os.resnet18",
        "timm.models.create_model",
        "timm.models._hub.load_custom_from_hf",
        "timm.layers.create_act.resnet18",
        "gnexp.runner.provenance.subprocess.run",
        "gnexp.norms.registry.build_norm",
        "resnet18",
        "",
    ],
)
def test_nothing_else_of_the_libraries_is_called_for_a_stranger(path):
    model = ModelConfig(_target_=path)
    config = TrainConfig(norm={"name": "custom", "_target_": path}, model=model)
    assert named_code(config) == [f"norm._target_={path}", f"model._target_={path}"]


def test_a_library_of_the_current_folder_is_not_the_library(workdir, monkeypatch):
    (workdir / "timm").mkdir()
    (workdir / "timm" / "__init__.py").write_text(MARKS.format(str(workdir / "marker")))
    hidden = {
        name: sys.modules.get(name) for name in [*sys.modules] if name.split(".")[0] == "timm"
    }
    for name in hidden:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(workdir)  # as python -m gnexp has it
    for model in (ModelConfig("resnet18", library="timm"), ModelConfig(_target_="timm.models.x")):
        config = TrainConfig(norm={"name": "gn"}, model=model)
        assert named_code(config) == ["timm of this folder"]
    assert not (workdir / "marker").exists()


def test_options_that_fetch_files_are_asked_about(theirs, gnexp):
    options = {"pretrained": True, "pretrained_cfg": {"url": "http://127.0.0.1:1/x.pth"}}
    forge(theirs, name="resnet18", library="timm", width=None, options=options)
    answer = gnexp("measure", "study=theirs", "what=[shift]", "shift.images=4")
    assert answer.code == 2
    assert "model.options.pretrained=True" in answer.err


class Bomb:
    """What touches a marker when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


def test_nothing_that_is_pickled_in_a_study_is_executed(theirs, gnexp, tmp_path):
    marker = tmp_path / "marker"
    torch.save({"0": {"model": {}, "bomb": Bomb(marker)}}, theirs / "checkpoint.pt")
    logits = np.empty(1, dtype=object)
    logits[0] = Bomb(marker)
    np.savez(theirs / "logits.npz", seed_0=logits)
    file = tmp_path / "weights.pt"
    file.write_bytes((theirs / "checkpoint.pt").read_bytes())
    gnexp("report", "study=theirs")
    refused = gnexp("train", "norm=gn", f"init_from={file}", "study=mine", *SMALL)
    assert refused.code == 2
    assert "cannot be read as tensors" in refused.err
    gnexp("train", "norm=gn", "study=theirs", "seeds=2", *SMALL)
    gnexp("measure", "study=theirs", "what=[classes,shift]", "shift.images=4")
    assert (theirs / "checkpoint.pt.corrupt").exists()
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()  # it is a real one


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{','.join([f'*a{n}'] * 9)}]\n" for n in range(12)
)
HOSTILE = {
    "an anchor in each of many": (BOMB, "it has the anchor a0"),
    "an anchor within itself": ("seeds: &a [*a]\n", "it has the anchor a"),
    "lists in lists": ("seeds: " + "[" * 100_000, "32 values within one another"),
    "mappings in mappings": ("".join(" " * n + "a:\n" for n in range(900)), "32 values within"),
    "much of it": ("seeds: [0]\n" + "# nothing\n" * 200_000, "larger than"),
    "a date that is none": ("seeds: 2020-99-99\n", "month must be"),
    "an object of Python": ("seeds: !!python/object/apply:os.system [touch x]\n", "python/object"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_yaml_file_is_named_at_once(kind, theirs, gnexp):
    text, why = HOSTILE[kind]
    (theirs / "result.json").unlink()  # so that the config is read from its YAML
    (theirs / "config.yaml").write_text(text)
    answer = gnexp("report", "study=theirs")
    assert answer.code == 2
    assert "config.yaml is corrupt (" in answer.err
    assert why in answer.err
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("name", "depth"), [("result.json", 100_000), ("status.json", 900), ("provenance.json", 900)]
)
def test_a_json_file_of_great_depth_is_named(name, depth, theirs, gnexp):
    (theirs / name).write_text('{"config": ' + "[" * depth + "]" * depth + "}")
    answer = gnexp("report", "study=theirs")
    assert f"{name} is corrupt (" in answer.out + answer.err
    assert answer.code == 0


def test_an_entry_of_a_checkpoint_that_is_no_tensor_file_is_named(theirs, gnexp):
    with zipfile.ZipFile(theirs / "checkpoint.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"0": {"model": {}}}))
    answer = gnexp("measure", "study=theirs", "what=[shift]", "shift.images=4")
    assert "checkpoint.pt is corrupt (" in answer.out
