"""Count the verdicts of the `gnexp check` beside a study, for the study's page."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

CHECK = Path("check") / "check.csv"  # below the folder that holds the studies


def verdict_counts(out: Path) -> dict[str, Any]:
    """Return norms, claims and counts {(claim, norm, verdict): n}; nothing if none was checked.

    out: the folder of the studies, under which `gnexp check` writes too.
    """
    try:
        with open(out / CHECK, newline="", encoding="utf-8") as file:
            rows = [r for r in csv.DictReader(file) if r.get("verdict") and r.get("statement")]
    except (OSError, ValueError, csv.Error):
        return {}
    if not rows:
        return {}
    return {
        "norms": list(dict.fromkeys(row["norm"] for row in rows)),
        "claims": sorted({(int(row["claim"]), row["title"]) for row in rows}),
        "counts": Counter((int(r["claim"]), r["norm"], _kind(r["verdict"])) for r in rows),
    }


def _kind(verdict: str) -> str:
    return "holds only when" if verdict.startswith("holds only when") else verdict
