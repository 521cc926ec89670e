"""This working tree timed against another one of the project, in one run, taking turns.

``python tools/against.py OLD_WORKTREE [NAME …]`` times every contest of ``against_worker.py``, or
those that are named: a training step, a look of the probes, the whole ladder for one seed. Each
tree has a process of its own, which stays for a whole contest and is told by a pipe to run one
round; each round starts with the other tree, so that a machine that slows down slows both. The
ratio is the old time over the new one within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("against_worker.py")
Tell = Callable[[str, str], dict[str, Any]]


@dataclass(frozen=True)
class Contest:
    """What is timed.

    Attributes:
        title: what one round does.
        target: that the old time over the new one should reach.
        rounds: that count, unless the command says otherwise.
        warm_up: rounds before them in which memory is reserved and algorithms are chosen.
    """

    title: str
    target: float
    rounds: int
    warm_up: int = 1


CONTESTS = {
    "digits_step": Contest("training step of the digits' explainer, as the demo trains", 2.0, 41),
    "resnet20_step_10": Contest("training step of resnet20's explainer, K = 10", 1.5, 9),
    "resnet20_step_100": Contest("training step of resnet20's explainer, K = 100", 1.5, 9),
    "ladder": Contest("six KD runs, wrn_16_2 to resnet20, one seed", 1.6, 2, 0),
    "digits_probe": Contest("probes of the demo at an inner checkpoint, one split", 2.5, 5),
    "digits_probe_last": Contest("probes of the demo at the last checkpoint, one split", 2.5, 5),
    "resnet20_probe_10": Contest("probes of resnet20's explainer, K = 10, one split", 2.0, 2, 0),
    "resnet20_probe_100": Contest("probes of resnet20's explainer, K = 100, one split", 4.0, 1, 0),
}


@dataclass(frozen=True)
class Result:
    """Of one contest.

    Attributes:
        name, title, target: of the contest.
        old, new: seconds, round by round.
        notes: what each tree says of its own contestant, as its memory format.
    """

    name: str
    title: str
    target: float
    old: list[float]
    new: list[float]
    notes: dict[str, str]

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of old over new within a round."""
        low, median, high = np.quantile(np.divide(self.old, self.new), (0.25, 0.5, 0.75))
        return float(low), float(median), float(high)

    @property
    def met(self) -> bool:
        """Whether the median ratio reaches the target."""
        return self.ratio[1] >= self.target

    def __str__(self) -> str:
        low, median, high = self.ratio
        old, new = (1000 * np.median(seconds) for seconds in (self.old, self.new))
        verdict = "met" if self.met else "not met"
        notes = "".join(f"\n  {tree}: {note}" for tree, note in self.notes.items() if note)
        return (
            f"{self.name}: {self.title}\n"
            f"  old {old:.4g} ms, new {new:.4g} ms (medians of {len(self.old)} rounds), "
            f"{median:.2f} times as fast ({low:.2f}–{high:.2f}); "
            f"target {self.target:g}: {verdict}{notes}"
        )

    def row(self) -> dict[str, Any]:
        """For JSON."""
        low, median, high = self.ratio
        return {
            **asdict(self),
            "ratio": median,
            "ratio_low": low,
            "ratio_high": high,
            "met": self.met,
        }


def timed(name: str, contest: Contest, trees: dict[str, Tell], rounds: int) -> Result:
    """Run a contest's rounds: ``trees`` are the old and the new one."""
    notes = {tree: str(tell("make", name)["note"]) for tree, tell in trees.items()}
    seconds: dict[str, list[float]] = {tree: [] for tree in trees}
    for i in range(rounds + contest.warm_up):
        for tree in list(trees) if i % 2 == 0 else list(trees)[::-1]:
            seconds[tree].append(float(trees[tree]("run", name)["seconds"]))
    old, new = (seconds[tree][contest.warm_up :] for tree in trees)
    return Result(name, contest.title, contest.target, old, new, notes)


@contextmanager
def worker(tree: Path, threads: int) -> Iterator[Tell]:
    """A process that runs the contests with the code of ``tree``."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        [sys.executable, str(WORKER), str(tree), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tree,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def tell(what: str, name: str) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([what, name]) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            sys.exit(f"the process of {tree} ended while it was told to {what} {name}; see above")
        return dict(json.loads(answer))

    try:
        yield tell
    finally:
        process.stdin.close()
        process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print every contest as it ends, and write all of them to the file of ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=Path, help="another working tree of the project")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CONTESTS))
    parser.add_argument("--rounds", type=int, help="by default each contest has its own number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="a file for all times")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in CONTESTS]:
        parser.error(f"unknown contest {unknown[0]!r}; valid: {', '.join(CONTESTS)}")
    if not (options.old / "kdx_analysis").is_dir():
        parser.error(f"{str(options.old)!r} is no working tree: it has no folder kdx_analysis")
    results = []
    for name in options.names or CONTESTS:
        contest = CONTESTS[name]
        with ExitStack() as stack:  # processes of its own, so that memory is not left from before
            trees = {
                label: stack.enter_context(worker(tree.resolve(), options.threads))
                for label, tree in (("old", options.old), ("new", ROOT))
            }
            results.append(timed(name, contest, trees, options.rounds or contest.rounds))
        print(results[-1], flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([result.row() for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
