"""A wheel holds all that gnexp needs, runs from any directory, and completes in a shell."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
TINY = ("model=resnet8", "model.width=8", "data.train_limit=40", "data.test_limit=20")
TINY += ("epochs=1", "batch=10", "gradients=0")
bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program that has to succeed, and return what it printed on stdout."""
    # What is exported here, such as PYTHONPATH, must not help the wheel.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COMP_"))}
    environment = inherited | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, kind: str, into: Path) -> Path:
    """Build a `wheel` or `sdist` of a source tree, with the installed hatchling."""
    command = (sys.executable, "-m", "build", f"--{kind}", "--no-isolation")
    run(*command, "--outdir", into, source, cwd=into)
    (built,) = into.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def contents(wheel: Path) -> dict[str, int]:
    """Return the checksum of every file of a wheel by its path there."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel built from the checkout."""
    return build(CHECKOUT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The source distribution built from the checkout."""
    return build(CHECKOUT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """The bin folder of a virtual environment with the wheel, and torch and the rest borrowed."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, symlinks=True, with_pip=False)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    # Written after the installation: pip would take the borrowed gnexp for the wheel's. Folders
    # named in a .pth come last on sys.path, and .pth files inside them, which is how an editable
    # gnexp is found, are not read.
    (site_packages,) = folder.glob("lib/python*/site-packages")
    lenders = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (site_packages / "borrowed.pth").write_text("\n".join(lenders))
    return folder / "bin"


def test_a_wheel_holds_the_package_its_configs_its_page_and_its_license_and_nothing_else(wheel):
    expected = {
        path.relative_to(CHECKOUT).as_posix()
        for kind in ("py", "j2", "css", "js", "md", "txt", "toml")
        for path in CHECKOUT.glob(f"gnexp/**/*.{kind}")
    }
    assert {"gnexp/report/page/page.html.j2", "gnexp/report/text/answer.j2"} <= expected
    expected |= {
        f"gnexp/config/yaml/{path.relative_to(CHECKOUT / 'configs').as_posix()}"
        for path in CHECKOUT.glob("configs/**/*.*")
    }
    assert "gnexp/config/yaml/norm/gn.yaml" in expected
    expected |= {"gnexp/py.typed", "gnexp/cli/help.txt"}
    names = set(contents(wheel))
    described = {name for name in names if ".dist-info/" in name}
    assert names - described == expected
    assert any(name.endswith("/LICENSE") for name in described)


def test_a_wheel_built_from_the_source_distribution_is_the_wheel_of_the_checkout(
    wheel, sdist, tmp_path
):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    (tmp_path / "again").mkdir()
    assert contents(build(unpacked, "wheel", tmp_path / "again")) == contents(wheel)


def test_a_source_distribution_holds_what_testing_it_needs_and_no_results(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"README.md", "LICENSE", "constraints.txt", "scripts/test.sh"}
    assert needed | {"tests/conftest.py", "tests/test_packaging.py"} <= names
    assert not [name for name in names if name.startswith(("results", ".venv"))]


def test_an_installed_wheel_trains_and_reports_in_an_empty_directory_with_its_own_configs(
    programs, workdir
):
    code = "import gnexp, gnexp.cli.hydra_app as h; "
    code += "print(gnexp.__file__, h.config_folder(), sep='\\n')"
    package, configs = map(Path, run(programs / "python", "-c", code, cwd=workdir).splitlines())
    assert package.is_relative_to(programs.parent)
    assert configs == package.parent / "config" / "yaml"
    run(programs / "python", "-m", "gnexp", "train", *TINY, cwd=workdir)
    (trained,) = (workdir / "results" / "main").iterdir()
    assert (trained / "result.json").is_file()
    run(programs / "gnexp", "report", cwd=workdir)
    assert (workdir / "results" / "main" / "report" / "index.html").is_file()


def complete(programs: Path, cwd: Path, line: str) -> list[str]:
    """Return what bash offers for a half-typed line, after the line of the help was evaluated."""
    script = """
    eval "$(gnexp train -sc install=bash)"
    complete -p gnexp | grep -q -- "-F hydra_bash_completion" || exit 1
    COMP_LINE=$1 COMP_POINT=${#1}
    read -r -a COMP_WORDS <<< "$1"
    [[ $1 == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    hydra_bash_completion
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return run("bash", "--norc", "-c", script, "bash", line, cwd=cwd, PATH=path).split()


@bash
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("gnexp train norm=", {"norm=bn", "norm=gn", "norm=ln", "norm=in"}),
        ("gnexp train -m batch=1,2 norm=b", {"norm=bn"}),
        ("gnexp train norm=gn gro", {"groups="}),
        ("gnexp report ", {"study="}),
        ("gnexp re", {"report"}),
        ("gnexp ", {"train", "report", "measure", "status", "verify", "export"}),
    ],
)
def test_bash_completes_commands_keys_and_choices(programs, workdir, line, offered):
    found = complete(programs, workdir, line)
    assert offered <= set(found)
    assert all(choice.startswith(line.split(" ")[-1]) for choice in found)


@bash
@pytest.mark.parametrize("line", ["gnexp tarin norm=", "gnexp train norm=typo gro"])
def test_completing_after_a_mistake_offers_nothing_and_says_nothing(programs, workdir, line):
    assert complete(programs, workdir, line) == []
    asked = subprocess.run(
        [programs / "gnexp", "-sc", "query=bash"],
        env=os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))},
        cwd=workdir,
        capture_output=True,
        text=True,
    )
    assert (asked.returncode, asked.stdout.strip(), asked.stderr) == (0, "", "")
    assert list(workdir.iterdir()) == []
