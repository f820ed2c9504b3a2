"""A study is one file to share: what is in it, who reads it, and which files are refused."""

import contextlib
import io
import os
import re
import shutil
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
from written_run import write_run

import gnexp as api
from gnexp.cli import main
from gnexp.store import archive
from gnexp.store.run import Run
from gnexp.store.study import load_study, studies

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "reference"
STUDY = Path("results/main")
ZIP = Path("results/main.zip")
TINY = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40")
TINY += ("epochs=1", "batch=10", "norm=bn", "workers=1", "device=cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of two runs, with what no report reads beside them, and its zip."""
    with contextlib.chdir(tmp_path_factory.mktemp("made")):
        write_run(STUDY / "gn-b2")
        write_run(STUDY / "gn-b4", seeds=(0, 1, 2))
        (STUDY / "notes.txt").write_text("mine\n")
        (STUDY / "gn-b2" / ".lock-7").write_text("")
        assert main(["export"]) == 0
        return Path.cwd()


@pytest.fixture
def study(made, workdir):
    """That study, without the zip."""
    return Path(shutil.copytree(made / STUDY, STUDY))


@pytest.fixture
def zipped(made, workdir):
    """That study as one file, and no folder."""
    ZIP.parent.mkdir(exist_ok=True)
    return Path(shutil.copy(made / ZIP, ZIP))


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def repack(path, files):
    """Write a zip with Python's own packer, so that all its checksums are right."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)


def unpacked(path):
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_the_zip_holds_every_file_of_the_runs_but_weights_and_logits(study, gnexp):
    answer = gnexp("export")
    assert answer.code == 0
    inside = unpacked(ZIP)
    assert {name for name in inside if name.startswith("main/gn-b2/")} == {
        f"main/gn-b2/{path.name}"
        for path in (study / "gn-b2").iterdir()
        if path.suffix not in (".pt", ".npz") and path.name[0] != "."
    }
    for name, data in inside.items():
        if not name.endswith("digests.json"):
            assert data == (STUDY.parent / name).read_bytes()
    assert answer.out.startswith(f"{ZIP}: 2 runs, {len(inside)} files, ")
    assert "left out: 4 files of weights and logits" in answer.out
    assert "notes.txt" in answer.out
    assert "unfinished" not in answer.out


def test_the_same_study_gives_the_same_bytes_at_any_time(study, zipped, gnexp, made):
    for path in study.rglob("*.json"):
        os.utime(path, (10**9, 10**9))
    assert gnexp("export").code == 0
    assert ZIP.read_bytes() == (made / ZIP).read_bytes()


def test_a_report_from_the_zip_is_byte_for_byte_that_from_the_folder(study, gnexp):
    (STUDY.parent / "check").mkdir()
    row = "norm,claim,title,statement,verdict\nGN(8),1,Independence,a,holds\n"
    (STUDY.parent / "check" / "check.csv").write_text(row)
    assert gnexp("export").code == 0
    from_folder = gnexp("report")
    wanted = tree(STUDY / "report")
    shutil.rmtree(STUDY)
    from_zip = gnexp("report")
    assert tree(STUDY / "report") == wanted
    assert ".made.json" in wanted
    assert from_zip.out == from_folder.out.split("runs; study=results/main.zip reads it\n")[1]


@pytest.mark.parametrize(
    ("place", "typed"),
    [
        ("results/main.zip", ()),
        ("results/main/main.zip", ()),
        ("mail/main.zip", ("study=mail/main.zip",)),
        ("home/main.zip", ("study=~/main.zip",)),
    ],
)
def test_a_zip_is_read_wherever_a_name_or_a_path_leads_to_it(
    place, typed, zipped, gnexp, monkeypatch
):
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    Path(place).parent.mkdir(exist_ok=True)
    zipped.rename(place)
    before = tree(Path())
    status = gnexp("status", *typed)
    assert status.out.endswith("2 runs; seeds: 5 complete\n")
    verify = gnexp("verify", *typed)
    assert (verify.code, "all as they were written" in verify.out) == (0, True)
    path = Path(typed[0].removeprefix("study=")) if typed else STUDY
    assert len(api.load_study(path)) == 5
    assert tree(Path()) == before, "reading writes nothing"


def test_the_report_of_a_zip_lies_beside_it(zipped, gnexp):
    Path("mail").mkdir()
    STUDY.mkdir()
    for place in ("mail/main.zip", STUDY / "main.zip"):
        shutil.copy(zipped, place)
    answer = gnexp("status")  # of two zips of one name none is chosen
    assert (answer.code, "main/main.zip and results/main.zip" in answer.err) == (2, True)
    assert gnexp("report", "study=mail/main.zip").code == 0
    assert Path("mail/main/report/index.html").is_file()
    Path("mail/main/report/runs.csv").write_text("")
    assert "runs.csv was changed since it was made" in gnexp("verify", "study=mail/main.zip").out


def test_two_zips_are_compared_like_two_folders(zipped, gnexp):
    Path("other").mkdir()
    shutil.copy(zipped, "other/main.zip")
    answer = gnexp("report", "study=[results/main.zip,other/main.zip]")
    assert (answer.code, "both are named main" in answer.err) == (2, True)
    Path("other/main.zip").rename("other/theirs.zip")
    assert gnexp("report", "study=[main,other/theirs.zip]").code == 0
    assert Path("results/report/main-vs-theirs/index.html").is_file()


def test_a_folder_with_runs_is_read_and_the_zip_beside_it_named(study, zipped, gnexp):
    write_run(STUDY / "gn-b8")
    for command in ("status", "verify"):
        answer = gnexp(command)
        assert answer.code == 0
        assert f"{ZIP} is not read, since {STUDY} holds runs; study={ZIP} reads it" in answer.out
    with pytest.warns(UserWarning, match=r"main\.zip is not read"):
        assert len(api.load_study(STUDY)) == 7
    assert gnexp("status", f"study={ZIP}").out.endswith("2 runs; seeds: 5 complete\n")
    answer = gnexp("report", f"study={ZIP}")
    assert (answer.code, "would replace that of results/main" in answer.err) == (2, True)


def test_a_changed_file_of_a_zip_is_named_although_its_checksum_in_the_zip_is_right(zipped, gnexp):
    files = unpacked(zipped)
    name = "main/gn-b2/metrics.csv"
    repack(zipped, files | {name: files[name].replace(b"2.31", b"1.31")})
    for command, code in (("status", 0), ("verify", 1)):
        answer = gnexp(command)
        assert answer.code == code
        assert f"{zipped}/gn-b2/metrics.csv was changed since it was written" in answer.out
    with pytest.warns(UserWarning, match=r"main\.zip/gn-b2/metrics.csv was changed"):
        api.load_study(zipped)
    del files[name]
    repack(zipped, files)
    assert f"{zipped}/gn-b2/metrics.csv is gone: nothing in main.zip" in gnexp("verify").out


def test_what_is_changed_in_the_folder_is_changed_in_the_zip(study, gnexp):
    for name in ("shift.csv", "digests.json"):
        path = study / {"shift.csv": "gn-b2", "digests.json": "gn-b4"}[name] / name
        path.write_bytes(path.read_bytes().replace(b"2", b"3", 1))
    (study / "gn-b2" / "covariance.csv").unlink()
    expected = [text.replace(str(STUDY), str(ZIP)) for text in load_study(STUDY).corrupt_files]
    assert len(expected) == 3
    answer = gnexp("export")
    assert answer.code == 0
    assert "shift.csv was changed since it was written" in answer.out
    found = [text.partition(": nothing in")[0] for text in load_study(ZIP).corrupt_files]
    assert found == [text.partition(": ")[0] for text in expected]


def test_an_unfinished_study_says_so_and_reads_as_interrupted(study, gnexp):
    Run(STUDY / "gn-b2").set_status(5, "running")
    assert "unfinished, stored as they are now: seeds 1 interrupted" in gnexp("export").out
    shutil.rmtree(STUDY)
    assert "1 interrupted" in gnexp("status").out


def test_a_zip_that_holds_what_the_folder_lacks_is_not_replaced(study, zipped, gnexp):
    shutil.rmtree(STUDY / "gn-b4")
    for content, why in ((None, "gn-b4, seed 0: move it away"), ("a letter", "no study's zip:")):
        if content:
            ZIP.write_text(content)
        before = ZIP.read_bytes()
        answer = gnexp("export")
        assert (answer.code, why in answer.err) == (2, True)
        assert ZIP.read_bytes() == before


def test_a_zip_is_not_exported_again_nor_written_into(zipped, gnexp):
    before = tree(Path())
    for words in (
        ("export",),
        ("train", *TINY),
        ("measure",),
        ("verify", "record=true"),
        ("report", "logger=tensorboard"),
    ):
        answer = gnexp(*words)
        assert (answer.code, answer.err.count("\n")) == (2, 1), answer
        assert str(zipped) in answer.err
        if words != ("export",):
            assert f"python -m zipfile -e {zipped} results\n" in answer.err
    assert tree(Path()) == before


def test_a_study_that_travelled_as_a_zip_is_trained_on_where_it_ended(gnexp):
    assert gnexp("train", *TINY).code == 0
    assert gnexp("export").code == 0
    shutil.rmtree(STUDY)
    command = re.search(r"python -m (zipfile .*)", gnexp("train", *TINY, "seeds=2").err)[1]
    zipfile.main(command.split()[1:])
    assert gnexp("verify").code == 0
    (run,) = load_study(STUDY).runs
    assert gnexp("train", *TINY, "seeds=2").code == 0
    (now,) = load_study(STUDY).runs
    assert now.numbers(0) == run.numbers(0), "what was trained is not trained again"
    assert now.numbers(1)["status"] == "complete"


@pytest.mark.parametrize("name", studies(PUBLISHED))
def test_a_published_study_is_as_it_was_written(name, gnexp):
    answer = gnexp("verify", f"study={name}", f"out={PUBLISHED}")
    assert answer.code == 0
    assert "all as they were written" in answer.out
    assert "without one" not in answer.out, "every file has a digest"


def test_reading_a_zip_calls_no_code_that_it_names(workdir, gnexp, monkeypatch):
    Path("evil_norm.py").write_text("raise SystemExit('called')\n")
    monkeypatch.syspath_prepend(str(workdir))
    run = write_run(STUDY / "evil-b2")
    target = {"name": "custom", "_target_": "evil_norm.Norm"}
    run.write_result({**run.result(), "config": {**run.result()["config"], "norm": target}})
    assert gnexp("export").code == 0
    shutil.rmtree(STUDY)
    for command in ("status", "verify", "report"):
        assert gnexp(command).code == 0
    assert len(api.load_study(ZIP)) == 2
    assert "evil_norm" not in sys.modules


def member(name, **more):
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    for key, value in more.items():
        setattr(info, key, value)
    return info


def zip_of(*members):
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as file:
        warnings.simplefilter("ignore")  # that a name is there twice
        file.writestr("main/gn-b2/result.json", "{}")
        for info, data in members:
            file.writestr(info, data)
    return bytearray(buffer.getvalue())


def with_flag(data, flag):
    """Set a bit in the flags of the last member, as its writer would have."""
    place = bytes(data).rindex(b"PK\x01\x02") + 8
    data[place : place + 2] = struct.pack("<H", struct.unpack_from("<H", data, place)[0] | flag)
    return data


def renamed(data, old, new):
    assert len(old) == len(new)
    return bytes(data).replace(old, new)


LINK = 0o120777 << 16
BAD = {
    "an absolute path": (zip_of((member("/etc/passwd"), "x")), "outside the study"),
    "a drive": (zip_of((member("C:/x"), "x")), "outside the study"),
    "a folder above": (zip_of((member("main/../../x"), "x")), "outside the study"),
    "a backslash": (
        renamed(zip_of((member("main/..|x"), "x")), b"..|x", b"..\\x"),
        "outside the study",
    ),
    "a zero byte": (
        renamed(zip_of((member("main/a|x"), "x")), b"a|x", b"a\0x"),
        "outside the study",
    ),
    "a link": (zip_of((member("main/x", external_attr=LINK), "/etc")), "is a link"),
    "a name twice": (zip_of((member("main/gn-b2/result.json"), "[]")), "2 members named"),
    "names that differ in case": (zip_of((member("main/gn-B2/result.json"), "")), "2 members"),
    "an encrypted member": (with_flag(zip_of((member("main/x"), "x")), 1), "encrypted"),
    "a bomb": (zip_of((member("main/x"), bytes(10**7))), "100 times its size"),
    "another packer": (
        zip_of((member("main/x", compress_type=zipfile.ZIP_LZMA), "x")),
        "another way than deflate",
    ),
    "two folders": (zip_of((member("other/x"), "x")), "must hold one folder"),
    "a file at the top": (zip_of((member("x"), "x")), "must hold one folder"),
    "no member": (b"PK\x05\x06" + bytes(18), "must hold one folder"),
    "no run": (renamed(zip_of(), b"gn-b2/result.json", b"gn-b2/another.txt"), "holds no run"),
    "no zip": (b"<html>Not found</html>", "no whole zip"),
    "nothing": (b"", "no whole zip"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_zip_that_no_study_is_made_of_is_refused_in_one_sentence(case, gnexp, workdir):
    data, why = BAD[case]
    ZIP.parent.mkdir()
    ZIP.write_bytes(data)
    before, around = tree(workdir), set(workdir.parent.rglob("*"))
    with pytest.raises(api.Mistake) as error:
        api.load_study(ZIP)
    told = [f"{error.value}\n"]
    answer = gnexp("status")
    assert (answer.code, answer.out) == (2, "")
    told.append(answer.err)
    for said in told:
        assert (said.count("\n"), str(ZIP) in said, why in said) == (1, True, True), said
    assert tree(workdir) == before
    assert {p for p in workdir.parent.rglob("*") if "cache" not in p.parts} <= around


def test_a_truncated_or_changed_zip_is_refused_wherever_the_byte_lies(zipped, gnexp):
    whole = zipped.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        zipped.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"main\.zip is (no whole zip|not read)"):
            load_study(zipped)
    zipped.write_bytes(whole)
    read = archive.contents(zipped)
    refused = 0
    for place in range(7, len(whole), len(whole) // 80):
        zipped.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        found = contents_or_why(zipped)
        refused += isinstance(found, str)
        assert found == read or re.match(r"results/main\.zip is (no whole zip|not read)", found)
    assert refused > 60, "but for dates and the like, which nothing reads"


def test_a_zip_whose_directory_lost_its_first_entry_is_refused_although_zipfile_takes_it(zipped):
    data = bytearray(zipped.read_bytes())
    end = data.rindex(b"PK\5\6")
    size, start = struct.unpack_from("<II", data, end + 12)
    entry = data.index(b"PK\1\2", start + 4) - start
    struct.pack_into("<II", data, end + 12, size - entry, start + entry)
    members = len(unpacked(zipped))
    zipped.write_bytes(data)
    assert len(unpacked(zipped)) == members - 1
    with pytest.raises(ValueError, match=f"{members - 1} of its {members} members"):
        load_study(zipped)


def contents_or_why(path):
    """Return all files of a zip, or the sentence with which it is refused."""
    try:
        load_study(path)
        return archive.contents(path)
    except ValueError as error:
        return str(error)


def test_a_size_that_a_member_only_claims_is_never_unpacked(workdir):
    data = zip_of((member("main/x"), bytes(10**7)))
    place = bytes(data).rindex(b"PK\x01\x02") + 24  # of the unpacked size in the directory
    data[place : place + 4] = struct.pack("<I", 100)
    ZIP.parent.mkdir()
    ZIP.write_bytes(data)
    with pytest.raises(ValueError, match="no whole zip"):
        load_study(ZIP)
