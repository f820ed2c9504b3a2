"""A user's mistake gets one sentence naming key, value and a way out, exit code 2, no file."""

import errno
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import image_folder
from PIL import Image

from gnexp.config.unknown import unknown

TINY = ("data.train_limit=40", "data.test_limit=20", "epochs=1", "gradients=0")

# What is typed after `gnexp train`, and words that the sentence must hold.
TYPED = {
    "unknown norm": (["norm=gm"], ["norm=gm", "gn"]),
    "unknown model": (["model=resnet21"], ["model=resnet21", "resnet20"]),
    "unknown data": (["data=cifar"], ["data=cifar", "cifar10"]),
    "unknown experiment": (["experiment=smoking"], ["experiment=smoking", "smoke"]),
    "batch of zero": (["batch=0"], ["batch=0", "at least 1", "batch=2"]),
    "negative batch": (["batch=-1"], ["batch=-1", "at least 1"]),
    "batch in letters": (["batch=abc"], ["batch=abc", "whole number"]),
    "half a batch": (["batch=1.5"], ["batch=1.5", "whole number"]),
    "empty batch": (["batch="], ["batch", "whole number"]),
    "groups that do not divide": (
        ["norm=gn", "groups=7", "model=resnet20"],
        ["groups=7", "16 channels", "norm1", "1, 2, 4, 8, 16"],
    ),
    "channels per group that do not divide": (
        ["norm=gn", "channels_per_group=5"],
        ["channels_per_group=5", "32 channels", "norm1"],
    ),
    "no groups": (["norm=gn", "groups=0"], ["groups=0", "at least 1"]),
    "groups and their size": (["groups=4", "channels_per_group=4"], ["exclude each other"]),
    "list of norms": (["norm=[bn,gn]"], ["norm=[bn,gn]", "-m norm=bn,gn"]),
    "norm typed twice": (["norm=gn", "norm=bn"], ["norm=gn", "norm=bn", "twice"]),
    "batch typed twice": (["batch=2", "batch=4"], ["batch=2", "batch=4", "twice"]),
    "misspelt key": (["grups=3"], ["grups", "groups"]),
    "misspelt key of data": (["data.rot=x"], ["data.rot", "data.root"]),
    "misspelt option of a norm": (["norm.epz=1"], ["norm.epz", "norm.eps"]),
    "negative eps": (["norm.eps=-1"], ["norm.eps=-1", "positive"]),
    "no epochs": (["epochs=0"], ["epochs=0", "at least 1"]),
    "lr that is no number": (["lr=nan"], ["lr=nan", "positive"]),
    "lr of zero": (["lr=0"], ["lr=0", "positive"]),
    "endless lr": (["lr=inf"], ["lr=inf", "positive"]),
    "lr in letters": (["lr=fast"], ["lr=fast", "positive"]),
    "momentum of one": (["momentum=1"], ["momentum=1", "below 1"]),
    "negative weight decay": (["weight_decay=-1"], ["weight_decay=-1", "0 or more"]),
    "unknown lr rule": (["lr_rule=cubic"], ["lr_rule=cubic", "linear"]),
    "unknown precision": (["precision=fp8"], ["precision=fp8", "bf16"]),
    "tf32 on a CPU": (["precision=tf32", "device=cpu"], ["precision=tf32", "CUDA"]),
    "unknown execution": (["execution=magic"], ["execution=magic", "eager"]),
    "unknown augmentation": (["data.augment=mixup"], ["data.augment=mixup", "crop_flip"]),
    "batch above the training set": (["batch=64", *TINY], ["batch=64", "40"]),
    "update above the training set": (["batch=2", "update_batch=50", *TINY], ["update_batch=50"]),
    "update that is no multiple": (
        ["batch=4", "update_batch=10"],
        ["update_batch=10", "batch=4", "update_batch=8"],
    ),
    "a device there is not": (["device=cuda:99"], ["device=cuda:99", "device=cpu"]),
    "unknown device": (["device=tpu"], ["device=tpu", "cuda"]),
    "no seeds": (["seeds=0"], ["seeds=0", "seeds=5"]),
    "a seed twice": (["seeds=[1,1]"], ["seeds=[1, 1]", "distinct"]),
    "one gradient": (["gradients=1"], ["gradients=1", "at least 4"]),
    "gradients at no batch": (["gradients_at=3"], ["gradients_at=3", "list"]),
    "study with a slash": (["study=../x"], ["study='../x'", "study=main"]),
    "empty study": (["study="], ["study=''", "study=main"]),
    "reserved study": (["study=report"], ["study=report", "reserved"]),
    "sweep without -m": (["batch=1,2"], ["batch=1,2", "-m batch=1,2"]),
    "a key without value": (["batch"], ["batch", "key=value"]),
    "no rates": (["lr=[]"], ["lr=[]", "positive"]),
    "momentum of a norm in letters": (["norm=bn", "norm.momentum=abc"], ["norm.momentum=abc"]),
    "a lead of less than nothing": (
        ["report.margin=-1"],
        ["report.margin=-1", "0 to below 100", "report.margin=0.5"],
    ),
    "a margin in letters": (["report.margin=half"], ["report.margin=half", "0 to below 100"]),
    "a margin of nan": (["report.margin=nan"], ["report.margin=nan", "0 to below 100"]),
    "a margin of true": (["report.margin=true"], ["report.margin=True", "0 to below 100"]),
    "a grid over margins": (["-m", "report.margin=0.5,1"], ["report.margin=", "one value"]),
    "reference of no images": (["reference_batch=0"], ["reference_batch=0", "at least 1"]),
    "a model without width": (["model.width=null"], ["model.width=null", "not null"]),
    "a grid over studies": (["-m", "study=a,b"], ["study=", "one value"]),
    "covariance of augmented images": (
        ["covariance=true", "gradients_augment=true"],
        ["covariance=true", "gradients_augment=false"],
    ),
    "a norm of one's own without its path": (
        ["norm=custom"],
        ["norm._target_ must be given, as norm._target_=my_pkg.MyNorm"],
    ),
    "a run that Hydra stored": (
        ["--experimental-rerun", "x.pickle"],
        ["--experimental-rerun", "the same command again"],
    ),
    "a folder of configs that is not there": (
        ["--config-dir", "nowhere"],
        ["--config-dir nowhere"],
    ),
    "two questions at once": (["--cfg", "job", "--multirun"], ["Only one of", "--cfg"]),
    "a grid of Hydra's own keys": (
        ["-m", "hydra.verbose=true,false"],
        ["hydra.verbose=true,false"],
    ),
    "a new key": (["+foo=3"], ["foo", "not a key"]),
    "a new key of data": (["+data.foo=3"], ["data.foo", "not a key"]),
    "a key taken away": (["~norm"], ["~norm", "another value"]),
    "a norm of no name": (["norm="], ["norm=", "bn, gn"]),
    "a flag there is not": (["--multi-run", "batch=2"], ["--multi-run", "--help"]),
    "an open bracket": (["seeds=[1,2"], ["[1,2", "key=value"]),
    "limit above the set": (["data.root=null", "data.test_limit=0"], ["data.test_limit=0"]),
    "unknown key in together": (["together={grups:3}"], ["grups"]),
    "norm without a module": (["norm._target_=MyNorm"], ["norm._target_=MyNorm", "my_pkg.MyNorm"]),
    "norm that is not there": (["norm._target_=nopkg.MyNorm"], ["nopkg.MyNorm", "nopkg"]),
    "norm missing in its module": (["norm._target_=math.MyNorm"], ["math.MyNorm", "math"]),
    "norm that is no module": (["norm._target_=math.sqrt"], ["math.sqrt", "nn.Module"]),
    "norm that raises": (["norm._target_=torch.nn.GroupNorm"], ["torch.nn.GroupNorm", "raised"]),
    "norm of two kinds": (["norm=bn", "norm._target_=a.B"], ["norm=bn", "exclude each other"]),
    "a folder for data that are drawn": (
        ["data.root=my_images"],
        ["data.root=my_images is not used", "data=imagefolder"],
    ),
    "groups of a norm without": (
        ["norm=bn", "groups=8"],
        ["groups=8 is not used", "norm=bn has no groups", "gn_ws"],
    ),
    "a size of groups in a grid without": (
        ["-m", "norm=bn,ln", "channels_per_group=4"],
        ["channels_per_group=4 is not used"],
    ),
    "trials without a choice": (["tuning.extend=0"], ["tuning.extend=0 is not used", "lr=tuned"]),
    "corruptions that nobody measures": (
        ["shift.corruptions=[fog]"],
        ["shift.corruptions=[fog] is not used", "measure=[shift]"],
    ),
    "more processes than work": (["workers=100"], ["workers=100 is more than the 1 trainings"]),
    "groups for all of a group of keys": (
        ["-m", "norm=bn", "together={groups:4},{groups:8}"],
        ["groups=4 is not used", "norm=bn has no groups"],
    ),
    "images of gradients that nobody draws": (
        ["gradients=0", "gradients_augment=true"],
        ["gradients_augment=true is not used"],
    ),
    "two lengths of training": (["epochs=2", "updates=9"], ["epochs=2 is not used", "updates=9"]),
    "a margin without a report": (["report.margin=1"], ["report.margin=1 is not used"]),
    "a reference without a report": (["reference_batch=8"], ["reference_batch=8 is not used"]),
    "a folder for Hydra": (["hydra.run.dir=mine"], ["hydra.run.dir=mine is not used", "out="]),
    "a folder for Hydra's grid": (
        ["-m", "batch=2,4", "hydra.sweep.dir=mine"],
        ["hydra.sweep.dir=mine is not used", "study="],
    ),
    "a rate twice": (["lr=[0.1,0.1]"], ["lr=[0.1, 0.1] names 0.1 twice"]),
    "a batch twice in a grid": (["-m", "batch=2,4,2"], ["batch=2,4,2 names 2 twice"]),
    "a batch of gradients twice": (["gradients_at=[2,2]"], ["gradients_at=[2, 2]", "twice"]),
    "gradients without end": (["gradients_at=[99999]"], ["gradients_at=[99999]", "at most 8192"]),
    "more seeds than anybody trains": (["seeds=100000000000"], ["seeds=100000000000", "10,000"]),
    "a seed that no table holds": (["seeds=[9223372036854775808]"], ["seeds=[92", "2^63"]),
    "a value without its key": (["=3"], ["=3 names no key", "key=value"]),
    "two for a truth value": (
        ["weight_standardization=2"],
        ["weight_standardization=2 must be true or false"],
    ),
    "half a truth value": (["force=0.5"], ["force=0.5 must be true or false"]),
    "a folder with an accent": (
        ["data=imagefolder", "data.root=donn\u00e9es"],
        ["data.root=donn\u00e9es does not exist"],
    ),
    "all norms, none of them custom": (
        ["-m", "norm=glob(*)", "batch=0"],
        ["batch=0", "at least 1"],
    ),
    "a bad job among good ones": (
        ["-m", "batch=2,4", "groups=2,7", *TINY],
        ["groups=7", "32 channels"],
    ),
}


def refused(answer, workdir, words):
    assert answer.code == 2, answer
    sentences = answer.err.strip().splitlines()
    assert all(line.startswith("gnexp: ") for line in sentences), answer.err
    assert "Traceback" not in answer.err
    for word in words:
        assert word in answer.err
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("case", TYPED)
def test_a_mistake_is_refused_in_one_sentence_and_nothing_is_written(case, gnexp, workdir):
    typed, words = TYPED[case]
    answer = gnexp("train", *typed)
    refused(answer, workdir, words)
    assert len(answer.err.strip().splitlines()) == 1, answer.err


def test_every_bad_job_of_a_grid_is_named_at_once(gnexp, workdir):
    answer = gnexp("train", "-m", "groups=3,4,5,7", "batch=0,2")
    refused(answer, workdir, ["batch=0"])
    answer = gnexp("train", "-m", "groups=3,4,5,7", "batch=2,4")
    refused(answer, workdir, ["groups=3", "groups=5", "groups=7"])
    assert len(answer.err.strip().splitlines()) == 3, "one sentence per mistake, not per job"


def test_an_unknown_command_names_the_nearest(gnexp, workdir):
    refused(gnexp("trian"), workdir, ["trian", "train"])


@pytest.mark.parametrize("command", ["report", "measure", "status", "verify", "export"])
def test_a_study_that_is_not_there_is_named_with_those_that_are(command, gnexp, workdir):
    refused(gnexp(command, "study=nothing"), workdir, ["study=nothing"])
    assert gnexp("train", "study=mine", "batch=10", *TINY).code == 0
    answer = gnexp(command, "study=mina")
    assert answer.code == 2
    assert "study=mina" in answer.err
    assert "mine" in answer.err


@pytest.mark.parametrize("command", ["report", "measure", "status", "verify", "export"])
def test_a_zip_that_is_not_there_or_has_the_name_of_no_study_is_named(command, gnexp, workdir):
    refused(gnexp(command, "study=mail/main.zip"), workdir, ["mail", "does not exist"])
    refused(gnexp(command, "study=mail/.a.zip"), workdir, ["study=mail/.a.zip", "rename it"])
    refused(gnexp(command, "study=mail/main"), workdir, ["study='mail/main'", "letters"])
    refused(gnexp(command, "study=mail/main.zip", "out=x"), workdir, ["out=x is not used"])
    refused(gnexp("train", "study=main.zip"), workdir, ["study=main.zip", "study=main"])
    refused(gnexp("export", "into=x"), workdir, ["into", "out"])


def test_measuring_nothing_is_refused(gnexp, workdir):
    refused(gnexp("measure", "gradients_at=null"), workdir, ["gradients_at=null", "[1,2,4,8]"])
    refused(gnexp("measure", "gradients=0"), workdir, ["gradients=0", "256"])


def test_counts_below_one_are_refused_by_every_command_that_has_them(gnexp, workdir):
    refused(gnexp("measure", "workers=0"), workdir, ["workers=0", "at least 1"])
    refused(gnexp("measure", "reference_batch=-1"), workdir, ["reference_batch=-1", "at least 1"])
    refused(gnexp("report", "reference_batch=0"), workdir, ["reference_batch=0", "at least 1"])
    refused(gnexp("report", "report.margin=100"), workdir, ["report.margin=100", "below 100"])


def test_trust_is_given_or_not_and_to_a_measurement(gnexp, workdir):
    refused(gnexp("measure", "trust=maybe"), workdir, ["trust=maybe", "true or false"])
    refused(gnexp("measure", "trust=7"), workdir, ["trust=7", "true or false"])
    refused(gnexp("train", "trust=true"), workdir, ["trust"])


def test_an_unknown_instrument_is_refused(gnexp, workdir):
    refused(gnexp("measure", "what=[gradiants]"), workdir, ["what=gradiants", "gradients"])


def test_a_gpu_is_refused_where_there_is_none(gnexp, workdir, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    refused(gnexp("train", "device=cuda"), workdir, ["device=cuda", "device=cpu"])


def test_a_data_root_that_does_not_exist_is_named(gnexp, workdir, tmp_path):
    typed = ["data=imagefolder", f"data.root={tmp_path}/nowhere", "batch=2"]
    refused(gnexp("train", *typed), workdir, ["data.root=", "nowhere"])


def test_a_missing_data_root_is_asked_for(gnexp, workdir):
    refused(gnexp("train", "data=imagefolder"), workdir, ["data.root"])
    refused(gnexp("train", "data=npz"), workdir, ["data.root"])


def test_an_empty_data_root_is_named(gnexp, workdir, tmp_path):
    (tmp_path / "empty").mkdir()
    typed = ["data=imagefolder", f"data.root={tmp_path}/empty", "batch=2"]
    refused(gnexp("train", *typed), workdir, ["data.root=", "empty"])


def test_a_data_root_of_one_class_is_refused(gnexp, workdir, tmp_path):
    image_folder(tmp_path / "images", classes=("cat",))
    typed = ["data=imagefolder", f"data.root={tmp_path}/images", "batch=2"]
    refused(gnexp("train", *typed), workdir, ["data.root=", "at least 2"])


def test_a_truncated_image_is_named(gnexp, workdir, tmp_path):
    image_folder(tmp_path / "images")
    victim = tmp_path / "images" / "train" / "dog" / "2.png"
    victim.write_bytes(victim.read_bytes()[:200])
    typed = ["data=imagefolder", f"data.root={tmp_path}/images", "batch=2"]
    refused(gnexp("train", *typed), workdir, ["dog/2.png"])


def test_a_root_in_the_home_folder_is_found_there(gnexp, workdir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    typed = ["data=imagefolder", "data.root=~/pictures", "batch=2"]
    refused(gnexp("train", *typed), workdir, [f"data.root={tmp_path}/home/pictures does not"])


def test_a_class_folder_that_links_to_itself_is_named(gnexp, workdir, tmp_path):
    image_folder(tmp_path / "images")
    loop = tmp_path / "images" / "train" / "loop"
    loop.symlink_to(loop)
    typed = ["data=imagefolder", f"data.root={tmp_path}/images", "batch=2"]
    refused(gnexp("train", *typed), workdir, ["train/loop cannot be read"])


def test_an_image_that_is_a_line_is_named(gnexp, workdir, tmp_path):
    image_folder(tmp_path / "images")
    Image.new("RGB", (100_000, 1)).save(tmp_path / "images" / "train" / "dog" / "2.png")
    typed = ["data=imagefolder", f"data.root={tmp_path}/images", "data.size=32", "batch=2"]
    refused(gnexp("train", *typed), workdir, ["dog/2.png is 100000x1", "crop or delete it"])


def test_weights_that_are_integers_are_no_state_dict(gnexp, workdir, tmp_path):
    for number, saved in enumerate(({0: 1, 1: 2}, {"0": {"model": 3}})):
        file = tmp_path / f"{number}.pt"
        torch.save(saved, file)
        typed = ("norm=bn", f"init_from={file}", "batch=2", *TINY)
        refused(gnexp("train", *typed), workdir, [f"{file} is not a state dict"])


def test_keys_that_a_command_has_no_use_for_are_refused(gnexp, workdir):
    refused(gnexp("measure", "shift.images=3"), workdir, ["shift.images=3", "what=[shift]"])
    refused(gnexp("measure", "cost.groups=4"), workdir, ["cost.groups=4", "what=[cost]"])
    typed = ("measure", "what=[shift]", "gradients=8")
    refused(gnexp(*typed), workdir, ["gradients=8 is not used: what=[shift]", "what=[gradients]"])
    refused(gnexp("bench", "norms=[bn]", "groups=4"), workdir, ["groups=4", "norms=bn", "gn_ws"])
    refused(gnexp("check", "norm=bn", "groups=4"), workdir, ["groups=4 is not used", "norm=bn"])
    refused(gnexp("check", "data.root=imgs"), workdir, ["data.root=imgs is not used"])


def test_measuring_where_nothing_is_trained_is_refused(gnexp, workdir):
    assert gnexp("train", "norm=gn", "batch=10", *TINY, "study=young").code == 0
    folder = next(Path("results/young").glob("gn-*"))
    status = {"seeds": {"0": {"status": "failed", "why": "power cut"}}}
    for written in ("result.json", "digests.json"):
        (folder / written).unlink()
    (folder / "status.json").write_text(json.dumps(status))
    answer = gnexp("measure", "study=young", "what=[shift]")
    assert answer.code == 2
    assert "study=young has no finished training to measure" in answer.err
    many = gnexp("measure", "study=young", "workers=100")
    assert many.code == 2


def test_a_study_of_somebody_else_is_refused_in_a_sentence(gnexp, workdir, monkeypatch):
    assert gnexp("train", "norm=gn", "batch=10", *TINY, "study=theirs").code == 0
    listed = os.listdir

    def locked(path="."):
        if str(path).endswith("theirs"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", locked)
    for command in ("status", "report", "measure"):
        answer = gnexp(command, "study=theirs")
        assert answer.code == 2
        sentence = "gnexp: results/theirs cannot be read or written (Permission denied)"
        assert answer.err.strip() == sentence


def test_configs_that_cannot_be_read_are_told_of_and_a_guess_among_none_is_none(gnexp, monkeypatch):
    assert unknown("norm=gn is unknown", "gn", []) == "norm=gn is unknown"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    answer = gnexp("train", "norm=gn")
    assert answer.code == 2
    assert "the configs of gnexp cannot be read" in answer.err


NAMES = (r"$\frac{1}$", r"$\bad{", "50%_&#")


def test_classes_whose_names_look_like_formulas_are_drawn_as_they_are(gnexp, workdir):
    image_folder(Path("odd"), side=16, classes=NAMES)
    words = ("data=imagefolder", "data.root=odd", "batch=2", "epochs=1", "gradients=4")
    words += ("model=resnet8", "model.width=8", "data.preview=true", "data.title='$x_{$'")
    answer = gnexp("train", "norm=gn", *words)
    assert answer.code == 0, answer.err
    assert Path("results/main/preview.png").stat().st_size > 1000
    assert gnexp("report", "report.format=[pdf,svg]").code == 0


def test_images_whose_names_are_no_text_are_trained_on_and_can_be_named(gnexp, workdir):
    image_folder(Path("odd"), side=16)
    folder = os.fsencode("odd/train/cat/")
    os.rename(folder + b"0.png", folder + b"\xff\xfe.png")
    Path(os.fsdecode(folder + b"notes.\xff")).write_text("no image")
    words = ("data=imagefolder", "data.root=odd", "batch=2", "epochs=1", "gradients=0")
    answer = gnexp("train", "norm=gn", "model=resnet8", "model.width=8", *words)
    assert answer.code == 0, answer.err
    assert "passed over 1 file (1 .\\udcff)" in answer.out
    Path(os.fsdecode(folder + b"\xff\xfe.png")).write_bytes(b"broken")
    answer = gnexp("train", "norm=gn", "model=resnet8", "model.width=8", *words)
    assert answer.code == 2
    assert "cannot be read as an image" in answer.err


def test_a_key_that_some_cells_of_a_grid_use_is_no_mistake(gnexp, workdir):
    typed = ("-m", "norm=bn,gn", "groups=4", "batch=10", "study=mixed", *TINY)
    assert gnexp("train", *typed).code == 0


def npz(path, **change):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8),
        "y_train": np.arange(8) % 2,
        "x_test": rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
        "y_test": np.arange(4) % 2,
    }
    arrays |= change
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_test": None}, ["x_test"]),
        ({"y_train": np.arange(5)}, ["y_train", "8"]),
        ({"x_train": np.zeros((8, 32, 32), np.float32)}, ["x_train", "uint8"]),
        ({"x_train": np.zeros((8, 5), np.uint8)}, ["x_train", "(8, 5)"]),
    ],
)
def test_missing_and_misshapen_arrays_of_an_npz_are_named(change, words, gnexp, workdir, tmp_path):
    npz(tmp_path / "my.npz", **change)
    typed = ["data=npz", f"data.root={tmp_path}/my.npz", "batch=2"]
    refused(gnexp("train", *typed), workdir, words)


def test_an_npz_that_holds_code_is_refused(gnexp, workdir, tmp_path):
    npz(tmp_path / "my.npz", y_train=np.array([print] * 8, dtype=object))
    typed = ["data=npz", f"data.root={tmp_path}/my.npz", "batch=2"]
    refused(gnexp("train", *typed), workdir, ["y_train"])


def test_a_download_that_fails_says_which_file_to_place_where(
    gnexp, workdir, tmp_path, monkeypatch
):
    import torchvision.datasets as datasets

    def unreachable(self):
        raise OSError("network is unreachable")

    monkeypatch.setattr(datasets.CIFAR10, "download", unreachable)
    answer = gnexp("train", "data=cifar10", f"data.root={tmp_path}/cifar")
    refused(answer, workdir, ["cifar-10-python.tar.gz", "unreachable"])


def test_a_results_folder_that_is_a_file_is_named(gnexp, workdir, tmp_path):
    (tmp_path / "file").write_text("")
    refused(gnexp("train", f"out={tmp_path}/file"), workdir, ["out=", "file", "cannot be written"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_results_folder_that_cannot_be_written_is_named(gnexp, workdir, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(gnexp("train", f"out={tmp_path}/locked"), workdir, ["out=", "cannot be written"])


def test_a_read_only_results_folder_is_named_for_root_too(gnexp, workdir):
    # /proc refuses new folders whoever asks.
    if not os.path.isdir("/proc"):
        pytest.skip("there is no /proc here")
    refused(gnexp("train", "out=/proc/gnexp"), workdir, ["out=/proc/gnexp"])


def test_the_archive_of_a_failed_download_is_no_data(gnexp, workdir, tmp_path):
    root = tmp_path / "cifar"
    root.mkdir()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    answer = gnexp("train", "data=cifar10", f"data.root={root}")
    refused(answer, workdir, ["cifar-10-python.tar.gz"])


def test_an_archive_of_a_stranger_writes_nothing_outside_its_folder(gnexp, workdir, tmp_path):
    root = tmp_path / "cifar"
    root.mkdir()
    for name in ("cifar-10-python.tar.gz", "cifar-100-python.tar.gz"):
        with tarfile.open(root / name, "w:gz") as archive:
            for place in ("../evil", str(tmp_path / "evil"), "cifar-10-batches-py/../../evil"):
                member = tarfile.TarInfo(place)
                member.size = 4
                archive.addfile(member, io.BytesIO(b"evil"))
        data = name.partition("-python")[0].replace("-", "")
        answer = gnexp("train", f"data={data}", f"data.root={root}")
        refused(answer, workdir, [name, "corrupt or incomplete"])
    assert [path.name for path in tmp_path.rglob("evil")] == []


@pytest.mark.parametrize("key", ["data.root", "study", "out", "init_from"])
def test_bytes_that_are_not_utf_8_are_refused_before_anything_is_written(key, gnexp, workdir):
    answer = gnexp("train", f"{key}=caf\udce9")
    assert answer.code == 2
    assert answer.err == (
        f"gnexp: '{key}=caf\\udce9' holds bytes that are not UTF-8: rename what it names\n"
    )
    assert not list(workdir.iterdir())
