"""Students under the arms of one study: with VAM, without it, and what sets one arm apart from
another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdx_analysis.config import flatten
from kdx_analysis.errors import AbsentError
from kdx_analysis.runs.run import Run
from kdx_analysis.runs.runset import RunSet


@dataclass(frozen=True)
class ArmContrast:
    """Two arms, a − b; ``adds`` says what a has that b has not."""

    a: str
    b: str
    adds: str

    @property
    def title(self) -> str:
        """The contrast as a difference."""
        return f"{self.a} − {self.b}"


def arms(runs: RunSet) -> RunSet:
    """The students among ``runs`` that are of arms. Raises AbsentError if there are not two arms."""
    found = RunSet(tuple(run for run in runs if run.role == "student" and run.vam))
    if len({run.vam for run in found}) < 2:
        raise AbsentError(
            f"the {len(runs)} runs hold no two arms of VAM; give runs of a study that maps vam to "
            "arms"
        )
    return found


def arm_contrasts(runs: RunSet) -> tuple[ArmContrast, ...]:
    """Every arm against the first, which is the one without VAM if there is one, then what the
    entropy term alone adds.

    Raises AbsentError if there are not two arms.
    """
    settings = {run.vam: _setting(run) for run in arms(runs)}
    first, *others = sorted(settings, key=lambda arm: bool(settings[arm]))
    pairs = [(arm, first) for arm in others]
    pairs += [
        (a, b) for b in others for a in others if _adds_entropy_alone(settings[a], settings[b])
    ]
    return tuple(ArmContrast(a, b, _adds(settings[a], settings[b])) for a, b in pairs)


def _setting(run: Run) -> dict[str, Any]:
    section = run.info["config"].get("vam")
    return {} if section is None else flatten(section)


def _penalised(setting: dict[str, Any]) -> bool:
    linear = setting.get("gamma.schedule") == "linear"
    return bool(setting.get("gamma.start") or (linear and setting.get("gamma.end")))


def _adds_entropy_alone(a: dict[str, Any], b: dict[str, Any]) -> bool:
    if not a or not b or _penalised(b) or not _penalised(a):
        return False
    return all(a.get(key) == b.get(key) for key in {**a, **b} if not key.startswith("gamma."))


def _adds(a: dict[str, Any], b: dict[str, Any]) -> str:
    if not a:
        return "no VAM"
    if not b:
        return "VAM and its entropy term" if _penalised(a) else "VAM"
    if _adds_entropy_alone(a, b):
        return "the entropy term alone"
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    return ", ".join(f"{key} {a.get(key)} instead of {b.get(key)}" for key in keys)
