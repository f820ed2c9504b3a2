"""The layout of the code: which package may import which, where torch may be, how long code is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "gnexp"
# Every package may import itself; "config.torchrun" is that module alone, which imports no other.
ALLOWED = {
    **{"config": set(), "store": set(), "data": {"config.unknown"}, "norms": {"config.unknown"}},
    **{"models": {"norms", "config.unknown"}},
    **{"analysis": {"store"}, "report": {"analysis", "store"}},
    "training": {"data", "models", "norms", "config.torchrun"},
    "measure": {"training", "data", "norms", "config.unknown"},
    "runner": {"config", "store", "data", "norms", "models", "training", "measure"},
    "checks": {"config", "data", "norms", "models", "training", "measure", "runner", "analysis"},
}
ALLOWED["cli"] = {*ALLOWED}
ALLOWED |= {"api": {*ALLOWED}, "__init__": {"api", "config", "models"}, "__main__": {"cli"}}
WITHOUT_TORCH = ("config", "store", "analysis", "report")
MOST_FILE_LINES, MOST_FUNCTION_LINES = 400, 70
# To be shortened; no file or function may be added.
LONG_FILES: set[str] = set()
# Moods, puns and words of our own for things that have a name; see the glossary in gnexp/README.md.
NOT_TERMS = {
    *("passport", "mending", "mend", "standing", "starting", "stepping", "foreign", "damage"),
    *("damaged", "outlook", "headline", "wording", "worded", "told", "company", "refusal", "deaf"),
    *("hear", "meet", "say", "frugal", "alone", "twin", "oracle", "population", "reestimation"),
    *("misbehaved", "holder", "subjects", "turns"),
}
NO_SUBJECT = ("What", "Where", "Whether", "How", "Which", "Who", "Whose", "Why", "When")
LONG_FUNCTIONS: set[str] = set()


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names of what a file imports, at its top and within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{named(path)}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_the_table_allows(package):
    allowed = {package, *ALLOWED[package]}
    strays = [
        f"{named(path)}: {name}"
        for path in files()
        if part_of(path) == package
        for name in imported(path)
        if name.startswith("gnexp.")
        and not any(f"{name}.".startswith(f"gnexp.{each}.") for each in allowed)
    ]
    assert not strays


def test_the_table_names_every_package_and_no_other():
    assert {part_of(path) for path in files()} == {*ALLOWED}


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_a_package_that_answers_before_torch_is_loaded_does_not_import_it(package):
    heavy = [
        f"{named(path)}: {name}"
        for path in files()
        if part_of(path) == package
        for name in imported(path)
        if name.split(".")[0] in ("torch", "torchvision")
    ]
    assert not heavy


def test_a_new_process_watches_its_parent_before_torch_is_loaded():
    within = [name for name in imported(PACKAGE / "runner" / "process_pool.py") if "gnexp" in name]
    assert within
    assert all(name.startswith("gnexp.config.torchrun.") for name in within)


def test_hydra_is_used_by_its_public_interface_but_for_the_callbacks_of_a_launcher():
    inner = {named(p): n for p in files() for n in imported(p) if n.startswith("hydra._internal")}
    assert inner == {"cli/launchers.py": "hydra._internal.callbacks.Callbacks"}


def test_no_two_modules_import_each_other_at_their_top():
    arrows = {}
    for path in files():
        name = "gnexp." + named(path).removesuffix(".py").replace("/", ".").removesuffix(
            ".__init__"
        )
        tops = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ImportFrom)]
        arrows[name] = {n.module for n in tops} | {
            f"{n.module}.{alias.name}" for n in tops for alias in n.names
        }
    arrows = {name: others & {*arrows} - {name} for name, others in arrows.items()}
    while free := {name for name, others in arrows.items() if not others & {*arrows}}:
        arrows = {name: others for name, others in arrows.items() if name not in free}
    assert not arrows


def test_files_and_functions_are_short_but_for_a_list_that_shrinks():
    long_files, long_functions = set(), set()
    for path in files():
        text = path.read_text()
        if text.count("\n") > MOST_FILE_LINES:
            long_files.add(named(path))
        for node in ast.walk(ast.parse(text)):
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if function and node.end_lineno - node.lineno + 1 > MOST_FUNCTION_LINES:
                long_functions.add(f"{named(path)}:{node.name}")
    assert long_files == LONG_FILES
    assert long_functions == LONG_FUNCTIONS


def test_a_package_says_what_lives_there_and_holds_nothing_else():
    for path in files():
        if path.name != "__init__.py" or path.parent == PACKAGE:
            continue
        tree = ast.parse(path.read_text())
        said = ast.get_docstring(tree) or ""
        assert re.search(r"\bimports?\b", said), f"{named(path)} does not say what it may import"
        if named(path) != "cli/__init__.py":  # which offers main and entry
            assert len(tree.body) == 1, named(path)


def words(name: str) -> set[str]:
    """Return the words of a name: {"why", "not", "stackable"} of why_not_stackable."""
    return set(re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().split("_"))


def names_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, first line of its docstring) of a module, its classes, functions, parameters."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)):
            name = path.stem if isinstance(node, ast.Module) else node.name
            yield name, (ast.get_docstring(node) or "").partition("\n")[0]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            yield from ((argument.arg, "") for argument in every)


@pytest.mark.parametrize("path", files(), ids=named)
def test_names_are_the_terms_of_the_field_and_docstrings_begin_with_their_subject(path):
    found = list(names_of(path))
    assert not {name for name, _ in found if words(name) & NOT_TERMS}
    assert not {line for _, line in found if set(re.findall(r"[a-z_]+", line.lower())) & NOT_TERMS}
    assert not {line for _, line in found if line.startswith(NO_SUBJECT)}
