"""The templates of all reports: pages, sentences, Markdown."""

import functools
import re
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


def write(template: str, **facts: Any) -> list[str]:
    """Return the sentences of a template of `text`, each in one line.

    What is true is decided before; a template chooses the words. Its line breaks and indents mean
    nothing; a line of -- ends a sentence.
    """
    text = render(f"text/{template}", **facts)
    joined = (" ".join(part.split()) for part in re.split(r"(?m)^\s*--$", text))
    return [re.sub(r" (?=[,.;:)])|(?<=\() ", "", sentence) for sentence in joined if sentence]


def pretty(text: str) -> str:
    """Turn the ASCII of captions and cells into the signs that a browser has."""
    for plain, sign in (("+-", "\u00b1"), ("^2", "\u00b2"), (" x ", " \u00d7 ")):
        text = text.replace(plain, sign)
    return "\u221e" if text == "inf" else text.replace("inf]", "\u221e]")
