"""The layout of the page: sections of parts, from the answer to the commands.

Figures and tables that no section names come last, so that nothing written is left out.
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """kind: figure, table, or a block that the template knows; name: which one.

    fold: the summary behind which it waits; "" shows it at once. wide: a figure over the page.
    """

    kind: str
    name: str
    fold: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading (anchor: its id, nav: its short name) and what stands under it.

    sub: a part of the section before. always: shown even when none of its parts has anything.
    """

    anchor: str
    title: str
    parts: tuple[Part, ...]
    nav: str = ""
    sub: bool = False
    always: bool = False


def _figure(name: str, fold: str = "", wide: bool = False) -> Part:
    return Part("figure", name, fold, wide)


def _table(name: str, fold: str = "") -> Part:
    return Part("table", name, fold)


def _block(name: str) -> Part:
    return Part("block", name)


SECTIONS = (
    Section(
        "accuracy",
        "Accuracy and batch size",
        (
            _block("matrix"),
            _table("accuracy", "Every cell with its interval"),
            _figure("accuracy_vs_groups", wide=True),
            _block("summary"),
        ),
        nav="Accuracy",
        always=True,
    ),
    Section(
        "norms",
        "Every norm against BN, and against every other",
        (_table("norm_comparisons"), _table("norm_pairs")),
        nav="Norms compared",
    ),
    Section("break-even", "Where they break even", (_table("break_even"),), sub=True),
    Section(
        "batch-cost",
        "What the batch size costs",
        (_table("flatness"), _table("robustness")),
        nav="Batch cost",
        always=True,
    ),
    Section(
        "two-batches",
        "The two batch sizes apart",
        (_figure("two_batches", wide=True), _table("two_batches")),
        nav="Two batches",
    ),
    Section(
        "rates",
        "Learning rates",
        (
            _figure("accuracy_vs_lr", wide=True),
            _figure("good_region"),
            _table("chosen_rates"),
            _table("tuning", "Every rate tried"),
        ),
        nav="Rates",
    ),
    Section(
        "gradients",
        "Gradient variance",
        (
            _figure("gradient_variance_vs_batch", wide=True),
            _table("exponents_of_all"),
            _table("exponents", "Exponents of every kind of parameter"),
            _figure("gradient_variance_by_kind", "Figure by kind of parameter", wide=True),
            _table("gradient_variance", "Every measured point"),
        ),
        nav="Gradients",
        always=True,
    ),
    Section("noise-check", "Noise measured two ways", (_block("noise_check"),), sub=True),
    Section(
        "why",
        "Where the small batch hurts",
        (
            _figure("decomposition", wide=True),
            _table("decomposition"),
            _table("decomposition_loss", "The same for the test loss"),
        ),
        nav="Why",
    ),
    Section(
        "shift",
        "Shifted test images",
        (
            _figure("shift"),
            _figure("shift_share"),
            _figure("shift_by_corruption", wide=True),
            _table("shift_summary"),
            _table("shift", "Every corruption and severity"),
        ),
        nav="Shift",
    ),
    Section("classes", "Classes", (_figure("classes"), _table("classes")), sub=True),
    Section(
        "composition",
        "Batch composition",
        (_figure("batches", wide=True), _table("batches", "Every evaluation")),
        sub=True,
    ),
    Section("curves", "Training curves", (_figure("curves", wide=True),), nav="Curves"),
    Section("cost", "Cost", (_figure("cost"),), nav="Cost"),
    Section(
        "claims",
        "The claims of the article",
        (_block("claims"), _table("article_claims"), _block("check")),
        nav="Claims",
        always=True,
    ),
    Section(
        "runs",
        "Runs",
        (_block("unfinished"), _table("runs", "All runs and seeds")),
        nav="Runs",
        always=True,
    ),
    Section("reproduce", "How to reproduce", (_block("reproduce"),), nav="Reproduce", always=True),
    Section("words", "What the words mean", (_block("words"),), nav="Words", always=True),
)
MAIN_FIGURE = "accuracy_vs_batch"
_KNOWN = {part.name for section in SECTIONS for part in section.parts} | {MAIN_FIGURE}


def layout(figures: Collection[str], tables: Collection[str]) -> list[Section]:
    """Return the sections that have something to show, given what was drawn and has rows."""
    found = []
    for section in SECTIONS:
        shown = [p for p in section.parts if _has(p, figures, tables)]
        if section.always or any(part.kind != "block" for part in shown) or _only_blocks(section):
            parts = section.parts if section.always else tuple(shown)
            parts = tuple(p for p in parts if p.kind != "figure" or p.name in figures)
            found.append(Section(**{**vars(section), "parts": parts}))
    more = [_figure(name, wide=True) for name in figures if name not in _KNOWN]
    more += [_table(name) for name in tables if name not in _KNOWN]
    if more:
        before = next(i for i, s in enumerate(found) if s.anchor == "claims")
        found.insert(before, Section("more", "More", tuple(more), nav="More"))
    return found


def _has(part: Part, figures: Collection[str], tables: Collection[str]) -> bool:
    return part.kind == "block" or part.name in (figures if part.kind == "figure" else tables)


def _only_blocks(section: Section) -> bool:
    return all(part.kind == "block" for part in section.parts)
