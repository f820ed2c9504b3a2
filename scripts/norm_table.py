"""Write the list in gnexp/norms/README.md from the table of norms: python scripts/norm_table.py"""

import inspect
from pathlib import Path

from gnexp.norms.registry import NORMS, Norm

README = Path(__file__).resolve().parent.parent / "gnexp" / "norms" / "README.md"
BEGIN = "<!-- norms: written by scripts/norm_table.py -->\n"
END = "<!-- end of norms -->\n"
AXES = {"n": "batch", "c": "channels", "h": "pixels", "w": "pixels"}


def markdown() -> str:
    """Return the list as a Markdown table, one row per norm in the order of the table."""
    head = "| `norm=` | name | what it does | statistics over | options | source |"
    rows = [_row(name, norm) for name, norm in NORMS.items()]
    return "\n".join([head, "| --- " * 6 + "|", *rows]) + "\n"


def _row(name: str, norm: Norm) -> str:
    sentence = inspect.getdoc(norm.build).split("\n\n")[0].replace("\n", " ")
    sentence = f"{sentence.rstrip('.:')}."  # a formula may follow the colon
    options = ", ".join(
        "`groups=8`" if key == "num_groups" else f"`norm.{key}={_short(value)}`"
        for key, value in norm.options.items()
        if value is not None
    )
    over = ", ".join(dict.fromkeys(AXES[axis] for axis in norm.pools)) or "none"
    cells = (f"`{name}`", norm.label, sentence, over, options, norm.source)
    return "| " + " | ".join(cells) + " |"


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def with_table(readme: str) -> str:
    """Return the README's text with the list between its two marks written anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + markdown() + END + after


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
