"""Tables of adapters_fusion.py: gains of single adapters, the share that is left after fusion, paired differences."""

import statistics

TASKS = ("arithmetic", "commonsense")
NAMES = {
    "score": "disjoint, by score",
    "random": "disjoint, at random",
    "overlapping": "the same channels",
    "lora": "LoRA, `cat`",
}


def report(rows):
    """Print the tables of all finished rows."""
    before = {row["task"]: row["test"] for row in rows if row["kind"] == "before"}
    fused = {(row["arm"], row["seed"]): row for row in rows if row["kind"] == "fused"}
    single = {(row["arm"], row["task"], row["seed"]): row for row in rows if row["kind"] == "single"}
    for _, seed in [key for key in fused if key[0] == "overlapping"]:
        # Its first adapter is that of the arm `random`.
        single.setdefault(("overlapping", TASKS[0], seed), single["random", TASKS[0], seed])
    _print_rates(rows)
    print("\n| arm | task | steps | gain alone | share left, weight 1 | share left, weight chosen | weights |")
    print("|---|---|---|---|---|---|---|")
    for arm in NAMES:
        seeds = sorted(seed for name, seed in fused if name == arm)
        for task in TASKS if seeds else ():
            alone = [single[arm, task, seed] for seed in seeds]
            shares = {
                part: [
                    _gain(before[task], fused[arm, seed][part][task]) / _gain(before[task], row["test"])
                    for seed, row in zip(seeds, alone, strict=True)
                ]
                for part in ("whole", "test")
            }
            gains = [_gain(before[task], row["test"]) for row in alone]
            weights = ", ".join(f"{fused[arm, seed]['weight']:g}" for seed in seeds)
            steps = statistics.fmean(row["steps"] for row in alone)
            cells = [NAMES[arm], task, f"{steps:.0f}", _mean(gains, 3), _percent(shares["whole"])]
            print("| " + " | ".join([*cells, _percent(shares["test"]), weights]) + " |")
    _print_differences(before, fused, single)


def _print_rates(rows):
    print("| arm | task | gain on the questions for choosing, by learning rate |\n|---|---|---|")
    for arm in NAMES:
        for task in TASKS:
            tried = [row for row in rows if row["kind"] == "rate" and (row["arm"], row["task"]) == (arm, task)]
            if tried:
                shown = ", ".join(f"{row['rate']:g}: {row['gain']:.3f}" for row in tried)
                print(f"| {NAMES[arm]} | {task} | {shown} |")


def _print_differences(before, fused, single):
    """Loss that is lost by fusing, of each arm minus that of `random`, paired by question and seed."""
    print("\n| against disjoint at random | task | weight 1 | weight chosen |\n|---|---|---|---|")
    for arm in NAMES:
        seeds = sorted(seed for name, seed in fused if name == arm and ("random", seed) in fused)
        for task in TASKS if arm != "random" and seeds else ():
            cells = []
            for part in ("whole", "test"):
                table = [
                    [one - other for one, other in zip(*lost, strict=True)]
                    for seed in seeds
                    for lost in [[_lost(fused, single, each, seed, part, task) for each in (arm, "random")]]
                ]
                cells.append(_crossed(table))
            print(f"| {NAMES[arm]} | {task} | {' | '.join(cells)} |")


def _lost(fused, single, arm, seed, part, task):
    alone = single[arm, task, seed]["test"]
    return [after - own for after, own in zip(fused[arm, seed][part][task], alone, strict=True)]


def _crossed(table):
    """Mean of a table of seeds by questions, with the standard error over both."""
    over_seeds, over_questions = (
        [statistics.fmean(values) for values in each] for each in (table, list(zip(*table, strict=True)))
    )
    variances = [statistics.variance(means) / len(means) for means in (over_seeds, over_questions) if len(means) > 1]
    return f"{statistics.fmean(over_seeds):+.3f} ± {sum(variances) ** 0.5:.3f}"


def _gain(before, after):
    return statistics.fmean(before) - statistics.fmean(after)


def _mean(values, digits):
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _percent(values):
    return _mean([100 * value for value in values], 0) + "%"
