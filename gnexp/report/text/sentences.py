"""Write sentences from the templates of this folder."""

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.report.text import phrases

if TYPE_CHECKING:
    from jinja2 import Environment


def write(template: str, **facts: Any) -> list[str]:
    """Return the sentences of a template, each in one line.

    A template decides nothing: facts are computed before. In it the functions of `phrases` are
    filters. Its line breaks and indents mean nothing; a line of -- ends a sentence.
    """
    text = _environment().get_template(template).render(**facts)
    joined = (" ".join(part.split()) for part in re.split(r"(?m)^\s*--$", text))
    return [re.sub(r" (?=[,.;:)])|(?<=\() ", "", sentence) for sentence in joined if sentence]


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= phrases.FILTERS
    made.globals |= phrases.FILTERS
    return made
