"""Write sentences from the templates of this folder."""

import re
from typing import Any

from gnexp.report import templates


def write(template: str, **facts: Any) -> list[str]:
    """Return the sentences of a template, each in one line.

    What is true is decided before; a template chooses the words. Its line breaks and indents mean
    nothing; a line of -- ends a sentence.
    """
    text = templates.render(f"text/{template}", **facts)
    joined = (" ".join(part.split()) for part in re.split(r"(?m)^\s*--$", text))
    return [re.sub(r" (?=[,.;:)])|(?<=\() ", "", sentence) for sentence in joined if sentence]
