"""The templates of all reports: pages, sentences, Markdown."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.analysis.eval_split import for_split
from gnexp.report.text import phrases

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **context: Any) -> str:
    """Return the text of a template, which is named by its path under this folder.

    In it the functions of `phrases` are filters. HTML is escaped.
    """
    return _environment().get_template(template).render(context)


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {**phrases.FUNCTIONS, "pretty": pretty, "for_split": for_split}
    made.globals |= phrases.FUNCTIONS
    return made


def pretty(text: str) -> str:
    """Turn the ASCII of captions and cells into the signs that a browser has."""
    for plain, sign in (("+-", "\u00b1"), ("^2", "\u00b2"), (" x ", " \u00d7 ")):
        text = text.replace(plain, sign)
    return "\u221e" if text == "inf" else text.replace("inf]", "\u221e]")
