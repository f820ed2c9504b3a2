"""Simulate how often the report's comparisons err, hold the truth, and decide.

python scripts/inference_errors.py [repetitions] writes errors.csv and .png, images.csv, seeds.csv
and correlations.csv to results/reference/inference. Studies are drawn cell by cell; variances are
moderated by gnexp, the rest is computed here on arrays (tests/analysis/test_inference.py ties
them).

Shapes: R repetitions (studies), S seeds, G cells, M comparisons of a family, N test images.
"""

import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import ndtr, stdtr, stdtrit
from scipy.stats import beta

from gnexp.analysis.moderated_variance import KEPT, SCATTERED, moderate

FOLDER = Path(__file__).parents[1] / "results" / "reference"
SWEEP, SHORT, TWO = (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 32), (1, 32)
GRIDS = {28: (4, SWEEP), 10: (2, SHORT), 6: (3, TWO), 4: (2, TWO), 2: (2, (1,))}
AGAINST_BN, ALL_PAIRS, AGAINST_REFERENCE = "norm against BN", "all pairs", "batch against reference"
EQUIVALENCE = "equivalence"
REFERENCE, LEAD, ALPHA = 32, 5.0, 0.05
SD, FLAT_SD, MARGIN, CHANCE, LEVEL = 0.01, 0.0015, 0.01, 0.1, 0.5


@dataclass(frozen=True)
class Scenario:
    """Spreads of the cells, as multiples of SD. The first norm pools over examples, as BN."""

    name: str
    scatter: dict = field(default_factory=dict)  # {(norm, batch); None for all: multiple}
    log_sd: float = 0.0
    tails: float = np.inf  # degrees of freedom of Student's t
    correlation: float = 0.0
    diverged: bool = False  # one seed of the last cell


SCENARIOS = (
    Scenario("equal spreads"),
    Scenario("BN scatters 4x at batch 1", {(0, 1): 4}),
    Scenario("BN scatters 8x at batch 1", {(0, 1): 8}),
    Scenario("every norm scatters 4x at batch 1", {(None, 1): 4}),
    Scenario("spreads log-normal, sd 0.4", log_sd=0.4),
    Scenario("heavy tails (t, 4 dof)", tails=4),
    Scenario("correlated seeds, 0.3", correlation=0.3),
    Scenario("one unannounced cell 4x", {(-1, -1): 4}),
    Scenario("one cell without spread", {(-1, -1): 0}),
    Scenario("one cell with a diverged seed", diverged=True),
)


def spreads(scenario, norms, batches):
    """Return (G,) standard deviations, cells ordered by norm, then batch."""
    sd = np.full((norms, len(batches)), SD)
    for (norm, batch), times in scenario.scatter.items():
        rows = slice(None) if norm is None else norm
        column = -1 if batch == -1 else batches.index(batch) if batch in batches else None
        if column is not None:
            sd[rows, column] *= times
    return sd.ravel()


def draw(rng, scenario, sd_G, mean_G, n_G, repetitions):
    """Return accuracies (R, S, G); nan beyond a cell's seeds."""
    most = int(max(n_G))
    sd_RG = sd_G * np.exp(scenario.log_sd * rng.standard_normal((repetitions, len(sd_G))))
    shape = (repetitions, most, len(sd_G))
    if np.isfinite(scenario.tails):
        z = rng.standard_t(scenario.tails, shape) * np.sqrt(1 - 2 / scenario.tails)
    else:
        z = rng.standard_normal(shape)
    if scenario.correlation:
        seed = rng.standard_normal((repetitions, most, 1))
        z = np.sqrt(1 - scenario.correlation) * z + np.sqrt(scenario.correlation) * seed
    x = mean_G + sd_RG[:, None, :] * z
    x[:, np.arange(most)[:, None] >= np.asarray(n_G)] = np.nan
    if scenario.diverged:
        x[:, 0, -1] = CHANCE
    return x


def family(name, norms, batches):
    """Return the (M, 2) pairs of cells that a family compares."""
    at = {(a, b): a * len(batches) + i for a in range(norms) for i, b in enumerate(batches)}
    if name == AGAINST_BN:
        return [(at[a, b], at[0, b]) for a in range(1, norms) for b in batches]
    if name == ALL_PAIRS:
        return [(at[a, b], at[c, b]) for a in range(2, norms) for c in range(1, a) for b in batches]
    others = [b for b in batches if b != REFERENCE]
    return [
        (at[a, b], at[a, REFERENCE]) for a in range(norms) for b in others if REFERENCE in batches
    ]


def compare(x_RSG, own_G, pairs):
    """Return difference, standard error, degrees of freedom (R, M) as the report has them."""
    n_RG = np.isfinite(x_RSG).sum(axis=1)
    mean_RG, variance_RG = np.nanmean(x_RSG, axis=1), np.nanvar(x_RSG, axis=1, ddof=1)
    variance_RG, dof_RG = moderate(variance_RG, n_RG - 1.0, ~np.asarray(own_G))
    a, b = np.array(pairs).T
    va, vb = (variance_RG[:, k] / n_RG[:, k] for k in (a, b))
    total = np.maximum(va + vb, 1e-30)
    dof = total**2 / (va**2 / dof_RG[:, a] + vb**2 / dof_RG[:, b] + 1e-60)
    least = np.minimum(dof_RG[:, a], dof_RG[:, b])
    cautious_RG = np.asarray(own_G) | (dof_RG > n_RG - 1)
    cautious = cautious_RG[:, a] | cautious_RG[:, b]
    dof = np.where(cautious, least + KEPT * (dof - least), dof)
    return mean_RG[:, a] - mean_RG[:, b], np.sqrt(total), dof


def holm(p_RM):
    """Return which of each row's hypotheses Holm's procedure rejects at ALPHA."""
    order = np.argsort(p_RM, axis=1)
    steps = np.take_along_axis(p_RM, order, 1) <= ALPHA / np.arange(p_RM.shape[1], 0, -1)
    rejected = np.empty_like(steps)
    np.put_along_axis(rejected, order, np.logical_and.accumulate(steps, axis=1), 1)
    return rejected


def decide(d, se, dof):
    """Return (rejected, lo, hi): Holm's decisions and the simultaneous intervals, (R, M)."""
    rejected = holm(2 * stdtr(dof, -np.abs(d) / se))
    half = stdtrit(dof, 1 - ALPHA / (4 * d.shape[1])) * se
    lo = np.where(rejected & (d > 0), np.maximum(d - half, 0), d - half)
    hi = np.where(rejected & (d < 0), np.minimum(d + half, 0), d + half)
    return rejected, lo, hi


def own_variance(scenario, norms, batches, pooling=(0,)):
    """Return (G,) the cells known to scatter: BN's at small batches, those with a diverged seed."""
    own = np.array([a in pooling and b <= SCATTERED for a in range(norms) for b in batches])
    own[-1] |= scenario.diverged
    return own


def simulate(rng, scenario, norms, batches, n_G, repetitions, sd_G=None, pooling=(0,)):
    """Yield a row per family: error without any true difference, coverage and power with some."""
    cells = norms * len(batches)
    sd_G = spreads(scenario, norms, batches) if sd_G is None else sd_G
    own_G = own_variance(scenario, norms, batches, pooling)
    equal_G = np.full(cells, LEVEL)

    def decided(mean_G, pairs, sd_G=sd_G):
        x = draw(rng, scenario, sd_G, mean_G, n_G, repetitions)
        return compare(x, own_G, pairs)

    for name in (AGAINST_BN, ALL_PAIRS, AGAINST_REFERENCE):
        pairs = family(name, norms, batches)
        if not pairs:
            continue
        a, b = np.array(pairs).T
        # Of a cell with a seed at chance no one knows the true mean: others must not suffer.
        counted = (a != cells - 1) & (b != cells - 1) if scenario.diverged else a >= 0
        rejected, *_ = decide(*decided(equal_G, pairs))
        row = {"family": name, "comparisons": len(pairs)}
        row |= bounded("error", (rejected & counted).any(axis=1))
        mean_G = equal_G.copy()
        if name == AGAINST_BN:  # the second norm leads by five spreads of the wider cell
            leads = a // len(batches) == 1
            mean_G[a[leads]] += LEAD * np.maximum(sd_G[a], sd_G[b])[leads]
        rejected, lo, hi = decide(*decided(mean_G, pairs))
        true = mean_G[a] - mean_G[b]
        row |= bounded("coverage", (((lo <= true) & (true <= hi)) | ~counted).all(axis=1))
        if name == AGAINST_BN:
            leads &= counted
            row["power"] = rejected[:, leads].mean() if leads.any() else np.nan
            for i in np.flatnonzero(leads):
                row[f"power_{batches[a[i] % len(batches)]}"] = rejected[:, i].mean()
        yield row
    pairs = family(AGAINST_REFERENCE, norms, batches)
    if pairs and not scenario.diverged:  # every difference is the margin: each "flat" is an error
        mean_G = equal_G + MARGIN * np.array(
            [b != REFERENCE for _ in range(norms) for b in batches]
        )
        d, se, dof = decided(mean_G, pairs, sd_G * FLAT_SD / SD)
        flat = holm(np.maximum(1 - stdtr(dof, (d + MARGIN) / se), stdtr(dof, (d - MARGIN) / se)))
        row = {"family": EQUIVALENCE, "comparisons": len(pairs)}
        yield row | bounded("error", flat.any(axis=1))


def published_settings():
    """Yield (study, Setting) of the published studies, those with BN and more than one norm."""
    from gnexp.analysis.study_analysis import study_analysis
    from gnexp.store.study import load_study

    for name in ("cifar10-first", "cifar10-lr-fair", "cifar10-why", "all-norms", "fine-tune"):
        for setting in study_analysis(load_study(FOLDER / name)).comparison_groups:
            if setting.pairs:
                yield name, setting


def correlations_table():
    """Return the rows of correlations.csv: how alike a seed's accuracies are in two cells, mean."""

    rows = []
    for name, setting in published_settings():
        cells = [cell.scores for line in setting.lines for cell in line.cells]
        found = []
        for a, b in itertools.combinations(cells, 2):
            x = np.array([(a[seed], b[seed]) for seed in sorted(a.keys() & b.keys())])
            if len(x) > 2 and np.ptp(x, axis=0).min() > 1e-9:
                found.append(np.corrcoef(x.T)[0, 1])
        start = setting.key.get("init_from", "")
        rows.append({"study": name, "init_from": start, "cells": len(cells), "pairs": len(found)})
        rows[-1]["correlation"] = np.mean(found)
    return pd.DataFrame(rows)


def published():
    """Yield (study, norms, batches, spreads, seeds, means (G,), labels, pooling norms)."""
    for name, setting in published_settings():
        if name == "fine-tune":
            continue  # two small settings
        lines = sorted(setting.lines, key=lambda line: line is not setting.bn)
        batches = tuple(cell.key["batch"] for cell in lines[0].cells)
        cells = [cell for line in lines for cell in line.cells]
        sd = np.array([np.std(cell.scored, ddof=1) for cell in cells])
        n, mean = ([of(cell.scored) for cell in cells] for of in (len, np.mean))
        labels = [line.label for line in lines]
        pools = [line.cells[0].record.result.get("pools") for line in lines]
        pooling = [i for i, axes in enumerate(pools) if axes is None or "n" in axes]
        yield name, len(lines), batches, sd, np.array(n), np.array(mean), labels, pooling


def table(repetitions):
    """Return the rows of errors.csv."""
    rows = []
    for scenario in SCENARIOS:
        for cells, (norms, batches) in GRIDS.items():
            for n in ("3", "5", "8", "3 and 5"):
                n_G = np.resize([int(k) for k in n.split(" and ")], cells)
                rng = np.random.default_rng([cells, *n.encode(), *scenario.name.encode()])
                head = {"scenario": scenario.name, "cells": cells, "n": n}
                rows += [
                    head | r for r in simulate(rng, scenario, norms, batches, n_G, repetitions)
                ]
    for name, norms, batches, sd, n_G, *_, pooling in published():
        rng = np.random.default_rng([*name.encode()])
        head = {"scenario": f"spreads of {name}", "cells": len(sd), "n": str(n_G[0])}
        found = simulate(rng, SCENARIOS[0], norms, batches, n_G, repetitions, sd, pooling)
        rows += [head | row for row in found]
    return pd.DataFrame(rows)


def seeds_table(repetitions):
    """Return the rows of seeds.csv: how often GN's lead over BN at batch 1 is decided with n seeds.

    Means and spreads are those of the published studies; n the seeds in every cell.
    """
    rows = []
    for name, norms, batches, sd, _, mean, labels, pooling in published():
        gn = next((i for i, label in enumerate(labels) if label.startswith("GN(")), None)
        if gn is None or 1 not in batches:
            continue
        pairs = family(AGAINST_BN, norms, batches)
        at = pairs.index((gn * len(batches) + batches.index(1), batches.index(1)))
        own = own_variance(SCENARIOS[0], norms, batches, pooling)
        lead = mean[pairs[at][0]] - mean[pairs[at][1]]
        for n in (3, 4, 5, 6, 8):
            rng = np.random.default_rng([n, *name.encode()])
            x = draw(rng, SCENARIOS[0], sd, mean, np.full(len(sd), n), repetitions)
            rejected, *_ = decide(*compare(x, own, pairs))
            head = {"study": name, "comparisons": len(pairs), "lead": lead}
            head |= {"sd_bn": sd[pairs[at][1]], "n": n}
            rows.append(head | bounded("decided", rejected[:, at]))
    return pd.DataFrame(rows)


def images_table(repetitions):
    """Return the rows of images.csv: coverage of one difference's interval by both sources.

    Seeds and images are crossed: an image has a difficulty that both cells share in part, a seed a
    level, and the rest is the seed's own; the truth is the mean over all seeds and images.
    """
    from gnexp.analysis.inference import contrast
    from gnexp.analysis.samples import BOUND, CROSSED, Sample, over_images

    rows = []
    for n, images, shared, seed_sd in (
        (3, 500, 0.9, 0.02),
        (3, 2000, 0.5, 0.1),
        (5, 1000, 0.9, 0.1),
    ):
        rng = np.random.default_rng([n, images])
        held = {CROSSED: [], BOUND: []}
        widths = {CROSSED: [], BOUND: []}
        for _ in range(repetitions):
            common = rng.standard_normal(images)
            pair = {CROSSED: [], BOUND: []}
            for _ in range(2):
                own = np.sqrt(shared) * common + np.sqrt(1 - shared) * rng.standard_normal(images)
                level = seed_sd * rng.standard_normal((n, 1))
                right_SN = rng.random((n, images)) < ndtr(level + own)
                accuracies = right_SN.mean(axis=1)
                own_variance = accuracies.var(ddof=1)
                score_N, rest = over_images(right_SN)
                fixed = (
                    accuracies.mean(),
                    n,
                    own_variance,
                    own_variance,
                    n - 1.0,
                    0.0,
                    False,
                    images,
                    "",
                )
                pair[CROSSED].append(Sample(*fixed, score_N, rest))
                pair[BOUND].append(Sample(*fixed, None, np.nan))
            for kind, (a, b) in pair.items():
                one = contrast([(1.0, a), (-1.0, b)])
                held[kind].append(one.lo <= 0 <= one.hi)
                widths[kind].append(one.hi - one.lo)
        for kind in held:
            head = {"n": n, "images": images, "shared": shared, "seed_sd": seed_sd, "by": kind}
            width = float(np.mean(widths[kind]))
            rows.append(head | bounded("coverage", np.array(held[kind])) | {"width": width})
    return pd.DataFrame(rows)


def bounded(name, hits):
    """Return a proportion with its exact 95 % bounds (Clopper & Pearson)."""
    k, n = int(hits.sum()), len(hits)
    lo = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    hi = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    return {name: k / n, f"{name}_lo": lo, f"{name}_hi": hi}


def draw_figure(rows, file):
    """Draw each family-wise error with its 95 % bounds, a panel a family, a row a scenario."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    families = (AGAINST_BN, ALL_PAIRS, AGAINST_REFERENCE, EQUIVALENCE)
    names = list(dict.fromkeys(rows["scenario"]))
    figure, panels = plt.subplots(1, 4, figsize=(12, 5.2), sharey=True, layout="constrained")
    colours = dict(zip(GRIDS, ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")))
    for panel, name in zip(panels, families):
        of = rows[rows["family"] == name]
        for cells in sorted(of["cells"].unique()):
            some = of[of["cells"] == cells]
            y = np.array([names.index(s) for s in some["scenario"]], float)
            spot = list(GRIDS).index(cells) if cells in GRIDS else 2
            y += (spot - 2) * 0.13 + np.linspace(-0.04, 0.04, len(some))
            error = 100 * some["error"].to_numpy()
            lo, hi = 100 * some["error_lo"].to_numpy(), 100 * some["error_hi"].to_numpy()
            look = {"fmt": "o", "ms": 2.5, "lw": 0.8, "color": colours.get(cells, "#444444")}
            label = f"{cells} cells" if cells in GRIDS else None
            panel.errorbar(error, y, xerr=[error - lo, hi - error], label=label, **look)
        panel.axvline(5, color="#888888", lw=0.8)
        panel.axvline(6, color="#888888", lw=0.8, ls=":")
        panel.set(title=name, xlabel="family-wise error (%)", xlim=(0, 9.8))
        panel.set_xticks(range(0, 10, 2))
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    panels[0].legend(fontsize=7, loc="lower right")
    figure.savefig(file, dpi=150, metadata={"Software": None})


def main(repetitions):
    folder = FOLDER / "inference"
    folder.mkdir(parents=True, exist_ok=True)
    rows = table(repetitions)
    rows.insert(3, "repetitions", repetitions)
    rows.to_csv(folder / "errors.csv", index=False, float_format="%.4f")
    images = images_table(repetitions)
    images.to_csv(folder / "images.csv", index=False, float_format="%.4f")
    seeds = seeds_table(repetitions)
    seeds.to_csv(folder / "seeds.csv", index=False, float_format="%.4f")
    correlations = correlations_table()
    correlations.to_csv(folder / "correlations.csv", index=False, float_format="%.4f")
    draw_figure(rows, folder / "errors.png")
    worst = rows.sort_values("error", ascending=False).groupby("family").head(4)
    print(worst[["family", "scenario", "cells", "n", "error", "error_hi"]].to_string(index=False))
    print(rows.groupby("family")["coverage"].min().to_string())
    for of in (images, seeds, correlations):
        print(of.to_string(index=False))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
