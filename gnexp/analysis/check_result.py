"""The rows, points and norms of a `gnexp check`."""

from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]

ROW_COLUMNS = ("norm", "claim", "key", "title", "section", "statement", "text", "what")
ROW_COLUMNS += ("expected", "measured", "value", "lo", "hi", "tolerance", "n", "verdict", "note")
POINT_COLUMNS = ("norm", "claim", "key", "panel", "series", "x", "y", "lo", "hi")


@dataclass
class CheckResult:
    """The findings of a check.

    rows, points: dicts, see ROW_COLUMNS and POINT_COLUMNS, by norm, then claim. claims: (number,
    key, title). main: (claim's key, statement) of the rows in the summary. trouble: (norm, why) ->
    numbers of the claims that could not be measured. traces: of what was raised, for errors.txt.
    """

    norms: list[str]
    claims: list[tuple[int, str, str]]
    main: set[tuple[str, str]] = field(default_factory=set)
    rows: list[Row] = field(default_factory=list)
    points: list[Row] = field(default_factory=list)
    trouble: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    traces: list[str] = field(default_factory=list)

    def trouble_lines(self) -> list[str]:
        """Return one sentence for each thing that kept claims from being measured."""
        lines = []
        for (_, why), numbers in self.trouble.items():
            named = f"claim{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
            lines.append(f"not measured, {named}: {why}")
        return lines
