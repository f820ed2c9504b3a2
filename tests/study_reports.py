"""Reports of stored studies, from a folder's path."""

from pathlib import Path

from gnexp.analysis.compare_studies import StudyComparison
from gnexp.analysis.leaders import MARGIN
from gnexp.analysis.study_analysis import study_analysis
from gnexp.report import comparison_report, study_report
from gnexp.report.text import accuracy_matrix
from gnexp.store.study import load_study

SVG = ("svg",)  # the page is made of it, and PNG files take longest


def build_report(folder, formats=SVG, margin=MARGIN):
    analysis = study_analysis(load_study(folder), margin=margin)
    return study_report.build_report(analysis, formats)


def plain_summary(folder, margin=MARGIN):
    return accuracy_matrix.plain_summary(study_analysis(load_study(folder), margin=margin))


def compare(out, names, reference_batch=32):
    sides = [study_analysis(load_study(Path(out) / n), reference_batch) for n in names]
    return StudyComparison(sides)


def build_comparison(out, names, formats=SVG):
    return comparison_report.build_comparison(compare(out, names), Path(out), formats)
