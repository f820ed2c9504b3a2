"""Count the verdicts of the `gnexp check` beside a study, for the study's page."""

import csv
from collections import Counter
from pathlib import Path

CHECK = Path("check") / "check.csv"  # below the folder that holds the studies
ONLY_WHEN = "holds only when"


def verdict_counts(out: Path) -> tuple[list[str], list[tuple[str, list[str]]]] | None:
    """Return (norms, [(claim, a text of counts per norm)]), or None where nothing was checked.

    out: the folder of the studies, under which `gnexp check` writes too.
    """
    path = out / CHECK
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [r for r in csv.DictReader(file) if r.get("verdict") and r.get("statement")]
    except (OSError, ValueError, csv.Error):
        return None
    if not rows:
        return None
    norms = list(dict.fromkeys(row["norm"] for row in rows))
    claims = dict.fromkeys((int(row["claim"]), row["title"]) for row in rows)
    counts = Counter((int(r["claim"]), r["norm"], _kind(r["verdict"])) for r in rows)
    table = []
    for number, title in sorted(claims):
        texts = []
        for norm in norms:
            kinds = ("holds", ONLY_WHEN, "holds vacuously", "fails", "undecided")
            parts = [(counts[number, norm, kind], kind) for kind in kinds]
            texts.append(", ".join(f"{n} {kind}" for n, kind in parts if n) or "not measured")
        table.append((f"{number}. {title}", texts))
    return norms, table


def _kind(verdict: str) -> str:
    return ONLY_WHEN if verdict.startswith(ONLY_WHEN) else verdict
