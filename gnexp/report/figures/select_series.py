"""Select the series of a figure: all, or those of one setting where there are too many."""

from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.report.text import phrases

MOST = 40  # series in one figure


def to_draw(analysis: StudyAnalysis) -> tuple[StudyAnalysis, str]:
    """Return the analysis of the series to draw, and a sentence on what is left out, or "".

    Of more than MOST, those of the setting that the answer is about: that with most cells. Of a
    setting with more than MOST, the first.
    """
    if len(analysis.series) <= MOST:
        return analysis, ""
    found = analysis.comparison_groups
    main = max(found, key=lambda one: sum(len(line.cells) for line in one.lines))
    shown = main.lines[:MOST]
    of = f"the {len(shown)} {phrases.setting(main, found)}"
    left_out = f" Of {len(analysis.series)} series {of} are drawn; the tables have all."
    return analysis.of_series(shown), left_out
