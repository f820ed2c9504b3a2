"""A user's mistake gets one sentence naming key, value and a way out, exit code 2, no file."""

import errno
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from image_folders import image_folder
from omegaconf import OmegaConf
from PIL import Image

from gnexp.cli.argv import quoted
from gnexp.cli.hydra_app import compose
from gnexp.config.unknown import unknown
from gnexp.store.run import Run

TINY = ("data.train_limit=40", "data.test_limit=20", "epochs=1", "gradients=0")

# What is typed after `gnexp train` (and TINY where a batch must fit), and a part of the sentence.
MISTAKES = [
    ("norm=gm", "norm=gm is unknown; did you mean gn? Valid: bn, "),
    ("norm=", "norm= is unknown; did you mean"),
    ("model=resnet21", "model=resnet21 is unknown; did you mean resnet"),
    ("experiment=smoking", "experiment=smoking is unknown; did you mean smoke?"),
    ("batch=0", "batch=0 must be a whole number of at least 1, such as batch=2"),
    ("batch=abc", "batch=abc must be a whole number, such as 2"),
    ("groups=7", "groups=7 does not divide"),
    ("channels_per_group=5", "channels_per_group=5 does not divide"),
    ("groups=4 channels_per_group=4", "groups= and channels_per_group= exclude each other"),
    ("norm=[bn,gn]", "norm=[bn,gn]: norm takes one choice; for a grid type -m norm=bn,gn"),
    ("norm=gn norm=bn", "norm is typed twice, norm=gn and norm=bn: keep one of them"),
    ("grups=3", "grups is not a key of gnexp train; did you mean groups?"),
    ("data.rot=x", "data.rot is not a key of gnexp train; did you mean data.root?"),
    ("norm.epz=1", "norm.epz is not an option of norm=gn; did you mean norm.eps?"),
    ("norm=none norm.eps=1", "norm.eps is not an option of norm=none, which has none;"),
    ("-m norm=bn,gn norm.momentum=0.2", "norm.momentum is not an option of norm=gn;"),
    ("+norm.foo=1", "norm.foo is not an option of norm=gn;"),
    ("norm.eps=-1", "norm.eps=-1 must be a positive number, such as norm.eps=1e-5"),
    ("norm=bn norm.momentum_rule=x", "norm.momentum_rule=x is not one of batches, examples"),
    ("lr=nan", "lr=nan must be a positive number, such as lr=0.1, or lr=tuned"),
    ("lr=[]", "lr=[] must be a positive number"),
    ("lr=[0.1,0.1]", "lr=[0.1, 0.1] names 0.1 twice"),
    ("momentum=1", "momentum=1.0 must be at least 0 and below 1, such as momentum=0.1"),
    ("weight_decay=-1", "weight_decay=-1.0 must be 0 or more"),
    ("lr_rule=cubic", "lr_rule=cubic is not one of linear, sqrt, none"),
    ("precision=tf32 device=cpu", "precision=tf32 needs a CUDA device"),
    ("-m execution=cudagraph,auto device=cpu", "execution=cudagraph needs a CUDA device"),
    ("batch=64 data.train_limit=40 epochs=1", "batch=64 is larger than the training set of 40"),
    ("batch=2 update_batch=50 data.train_limit=40", "update_batch=50 is larger than the"),
    ("batch=4 update_batch=10", "update_batch=10 must be a multiple of batch=4, such as update_"),
    ("device=cuda:99", "device=cuda:99"),
    ("device=tpu", "device=tpu"),
    ("seeds=0", "seeds=0 must be how many, up to 10,000 (seeds=5), or distinct seeds by name"),
    ("seeds=100000000000", "seeds=100000000000 must be how many, up to 10,000 (seeds=5)"),
    ("seeds=[9223372036854775808]", "or distinct seeds by name, below 2^63"),
    ("gradients=1", "gradients=1 must be 0 (none) or at least 4 draws, such as 256"),
    ("gradients_at=3", "gradients_at=3 must be a list of batch sizes of at most 8192, each once"),
    ("gradients_at=[99999]", "gradients_at=[99999] must be a list of batch sizes of at most 8192"),
    ("study=../x", "study='../x' must be 1 to 100 letters, digits, '.', '_' and '-', without"),
    ("study=report", "study=report is a reserved name; choose another, such as study=report-1"),
    ("batch=1,2", "batch=1,2 is a sweep: type -m batch=1,2\n"),
    ("gradients_at=1,2", "type -m gradients_at=1,2, or gradients_at=[1,2] for a list"),
    ("-m lr=interval(0.1,0.2)", "lr=interval(0.1,0.2) is an interval: name values, or an"),
    ("batch", "cannot read what was typed"),
    ("seeds=[1,2", "cannot read what was typed"),
    ("=3", "=3 names no key; write key=value"),
    ("report.margin=nan", "report.margin=nan must be points of accuracy from 0 to below 100"),
    ("-m report.margin=0.5,1", "report.margin= takes one value per grid"),
    ("model.width=null", "model.width=null must be a whole number, not null"),
    ("covariance=true gradients_augment=true", "covariance=true needs gradients_augment=false"),
    ("norm=custom", "norm._target_ must be given, as norm._target_=my_pkg.MyNorm"),
    ("--experimental-rerun x.pickle", "--experimental-rerun is not supported: the same command"),
    ("--config-dir", "argument -cd/--config-dir: expected one argument"),
    ("--config x", "ambiguous option: --config could match --config-dir, --config-name"),
    ("--config-dir nowhere", "--config-dir nowhere is not a folder"),
    ("--cfg job --multirun", "Only one of"),
    ("--multi-run batch=2", "--multi-run; see gnexp train --help"),
    ("-m hydra.verbose=true,false", "hydra.verbose=true,false: a grid is of gnexp's keys"),
    ("hydra/sweeper=basic hydra.sweeper._target_=a.B", "a.B is not supported here"),
    ("~norm", "~norm: no key can be taken away; give it another value"),
    ("together={grups:3}", "together={grups:...} is not a key of a run"),
    ("norm._target_=MyNorm", "norm._target_=MyNorm"),
    ("norm._target_=nopkg.MyNorm", "norm._target_=nopkg.MyNorm cannot be imported"),
    ("norm._target_=math.MyNorm", "math has no MyNorm"),
    ("norm._target_=math.sqrt", "must return an nn.Module"),
    ("norm._target_=torch.nn.GroupNorm", "gnexp: norm._target_=torch.nn.GroupNorm raised"),
    ("norm=bn norm._target_=a.B", "norm=bn and norm._target_= exclude each other"),
    ("data.root=my_images", "data.root=my_images is not used: data=shapes10 is drawn, not read;"),
    ("norm=bn groups=8", "groups=8 is not used: norm=bn has no groups; those that have are gn,"),
    ("-m norm=bn together={groups:4},{groups:8}", "groups=4 is not used: norm=bn has no groups"),
    ("convert.only=bn1", "convert.only=bn1 is not used: norm= is of all norm layers of model=tiny"),
    ("tuning.extend=0", "tuning.extend=0 is not used: no rate is chosen; type lr=tuned too"),
    ("shift.corruptions=[fog]", "shift.corruptions=[fog] is not used: no shift is measured; type"),
    ("workers=100", "workers=100 is more than the 1 trainings asked for, and than the"),
    ("gradients=0 gradients_augment=true", "gradients_augment=true is not used: no gradient"),
    ("epochs=2 updates=9", "epochs=2 is not used: updates=9 says how long"),
    ("report.margin=1", "report.margin=1 is not used: one run ends without a report"),
    ("hydra.run.dir=mine", "hydra.run.dir=mine is not used: a study has its own folder"),
    ("-m batch=2,4,2", "batch=2,4,2 names 2 twice; type each value once"),
    ("weight_standardization=2", "weight_standardization=2 must be true or false"),
    ("data=imagefolder data.root=donn\u00e9es", "data.root=donn\u00e9es does not exist"),
    ("-m norm=glob(b*) batch=0", "batch=0 must be a whole number of at least 1"),
    ("-m batch=2,4 groups=2,7 data.train_limit=40 epochs=1", "groups=7 does not divide"),
]


def refused(answer, workdir, words):
    assert answer.code == 2, answer
    sentences = answer.err.strip().splitlines()
    assert all(line.startswith("gnexp: ") for line in sentences), answer.err
    assert "Traceback" not in answer.err
    for word in words:
        assert word in answer.err
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize(("typed", "sentence"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_a_mistake_is_refused_in_one_sentence_and_nothing_is_written(
    typed, sentence, gnexp, workdir
):
    answer = gnexp("train", *typed.split())
    refused(answer, workdir, [sentence])
    assert len(answer.err.strip().splitlines()) == 1, answer.err


def test_every_bad_job_of_a_grid_is_named_at_once(gnexp, workdir):
    answer = gnexp("train", "-m", "groups=3,4,5,7", "batch=2,4")
    refused(answer, workdir, ["groups=3", "groups=5", "groups=7"])
    assert len(answer.err.strip().splitlines()) == 3, "one sentence per mistake, not per job"
    typed = ("norm=bn,xx", "batch=2,abc", "groups=0,8", "lr=0.1,fast")
    words = ["norm=xx is unknown", "batch=abc must be", "groups=0 must be", "lr=fast must be"]
    answer = gnexp("train", "-m", *typed)
    refused(answer, workdir, words)
    assert len(answer.err.splitlines()) == 4, answer.err


@pytest.mark.parametrize("text", ["plain", "a\\", "a\\'b", "${x}", 'say "x", [1]', "a b=c"])
def test_any_text_can_be_quoted_for_hydra(text):
    (parsed,) = OverridesParser.create().parse_overrides([f"key={quoted(text)}"])
    config = OmegaConf.create({"key": str(parsed.value())})
    assert config.key == text


OF_OTHER_COMMANDS = [
    ("trian", "trian is no command; did you mean train?"),
    ("measure gradients_at=null", "gradients_at=null measures nothing: name batch sizes, such as"),
    ("measure gradients=0", "gradients=0 measures nothing: name a number of draws, such as 256"),
    ("measure workers=0", "workers=0 must be a whole number of at least 1"),
    ("measure what=[gradiants]", "what=gradiants is unknown; did you mean gradients?"),
    ("measure what=[]", "what=[] measures nothing: name instruments"),
    ("measure trust=maybe", "trust=maybe must be true or false"),
    ("train trust=true", "trust is not a key of gnexp train"),
    ("report reference_batch=0", "reference_batch=0 must be a whole number of at least 1"),
    ("report -m study=a,b", "gnexp report takes no --multirun; name one study, as study=main"),
    ("export into=x", "into is not a key of gnexp export; did you mean out?"),
    ("measure shift.images=3", "shift.images=3 is not used: what=['gradients'] does not measure"),
    ("measure cost.groups=4", "cost.groups=4 is not used"),
    ("measure what=[shift] gradients=8", "gradients=8 is not used: what=['shift'] does not"),
    ("bench norms=[bn] groups=4", "groups=4 is not used: no norm of norms=['bn'] has groups;"),
    ("check norm=bn groups=4", "groups=4 is not used: norm=bn has no groups"),
    ("check data.root=imgs", "data.root=imgs is not used"),
]


@pytest.mark.parametrize(("typed", "sentence"), OF_OTHER_COMMANDS)
def test_a_mistake_of_another_command_is_refused_in_one_sentence(typed, sentence, gnexp, workdir):
    answer = gnexp(*typed.split())
    refused(answer, workdir, [sentence])
    assert len(answer.err.strip().splitlines()) == 1, answer.err


@pytest.mark.parametrize("command", ["report", "measure", "status", "verify", "export"])
def test_a_study_that_is_not_there_is_named_with_those_that_are(command, gnexp, workdir):
    refused(gnexp(command, "study=mina"), workdir, ["study=mina does not exist"])
    (workdir / "results" / "mine").mkdir(parents=True)
    Run.create(workdir / "results/mine/gn-b2").write_config({"norm": {"name": "gn"}, "batch": 2})
    answer = gnexp(command, "study=mina")
    assert answer.code == 2
    assert "study=mina does not exist in results; there is: mine" in answer.err


@pytest.mark.parametrize("command", ["report", "verify"])
def test_a_zip_that_is_not_there_or_has_the_name_of_no_study_is_named(command, gnexp, workdir):
    refused(gnexp(command, "study=mail/main.zip"), workdir, ["mail", "does not exist"])
    refused(gnexp(command, "study=mail/.a.zip"), workdir, ["study=mail/.a.zip", "rename it"])
    refused(gnexp(command, "study=mail/main"), workdir, ["study='mail/main'", "letters"])
    refused(gnexp(command, "study=mail/main.zip", "out=x"), workdir, ["out=x is not used"])
    refused(gnexp("train", "study=main.zip"), workdir, ["study=main.zip", "study=main"])


def test_a_gpu_is_refused_where_there_is_none(gnexp, workdir, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    refused(gnexp("train", "device=cuda"), workdir, ["device=cuda", "device=cpu"])


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


def test_measuring_where_nothing_is_trained_is_refused(gnexp, workdir):
    run = Run.create(workdir / "results/young/gn-b2")
    run.write_config({"norm": {"name": "gn"}, "batch": 2, "seeds": [0]})
    run.set_status(0, "failed", "power cut")
    answer = gnexp("measure", "study=young", "what=[shift]")
    assert answer.code == 2
    assert "study=young has no finished training to measure" in answer.err


def test_a_study_of_somebody_else_is_refused_in_a_sentence(gnexp, workdir, monkeypatch):
    (workdir / "results/theirs").mkdir(parents=True)
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
    assert answer.out.count("passed over 1 file (1 .\\udcff)\n") == 1
    (result,) = Path("results/main").glob("*/result.json")
    assert json.loads(result.read_text())["data"]["passed_over"] == "1 file (1 .\\udcff)"
    Path(os.fsdecode(folder + b"\xff\xfe.png")).write_bytes(b"broken")
    answer = gnexp("train", "norm=gn", "model=resnet8", "model.width=8", *words)
    assert answer.code == 2
    assert "cannot be read as an image" in answer.err


def test_a_key_that_some_cells_of_a_grid_use_is_no_mistake(workdir):
    assert len(compose("train", ["-m", "norm=bn,gn", "groups=4"])[0]) == 2


def test_a_results_folder_that_is_a_file_or_cannot_be_made_is_named(gnexp, workdir, tmp_path):
    (tmp_path / "file").write_text("")
    refused(gnexp("train", f"out={tmp_path}/file"), workdir, ["out=", "file", "cannot be written"])
    if os.path.isdir("/proc"):  # which refuses new folders whoever asks, root too
        refused(gnexp("train", "out=/proc/gnexp"), workdir, ["out=/proc/gnexp"])


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
