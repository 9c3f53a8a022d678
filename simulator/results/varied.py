"""What a varied assumption does to a verdict, for people and for scripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from simulator.results.paired import Paired, interval


@dataclass(frozen=True)
class Surcharge:
    """The best adaptive policy is ahead of the best other one until a step costs `flips_s` more, in seconds.

    assumed_s: what the comparison charged. flips_s counts on top of nothing, so that the two can be compared; None when
    the adaptive policy is not ahead: behind already, or no difference.
    """

    adaptive: str
    other: str
    assumed_s: float
    flips_s: float | None

    def __str__(self) -> str:
        assumed = f"{1e3 * self.assumed_s:.3g} ms a step assumed"
        if self.flips_s is None:
            return f"adaptive verification: {self.adaptive} is not ahead of {self.other} ({assumed})"
        return (
            f"adaptive verification: {self.adaptive} is ahead of {self.other} while it costs less than about "
            f"{1e3 * self.flips_s:.3g} ms a step ({assumed})"
        )


@dataclass(frozen=True)
class Varied:
    """One assumption varied. gain: of the leader over the runner-up in the figure that judges; flips: the other leads.

    A gain whose interval holds 0 is no flip: it is said to be none.
    """

    what: str
    gain: Paired
    flips: bool

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {"what": self.what, **asdict(self.gain), "flips": self.flips}


@dataclass(frozen=True)
class Sensitivity:
    """leader, runner_up: the policies. figure: what judges. asis: the gain under the stated assumptions."""

    leader: str
    runner_up: str
    figure: str
    asis: Paired
    varied: tuple[Varied, ...]

    def lines(self) -> list[str]:
        """For people: a heading, a line an assumption, and what flips the verdict."""
        flips = [each.what for each in self.varied if each.flips]
        said = "nothing of this flips the verdict" if not flips else f"the verdict flips with: {', '.join(flips)}"
        rows = [f"  {each.what:34} {interval(each.gain)}{'  FLIPS' if each.flips else ''}" for each in self.varied]
        return [
            f"sensitivity of {self.leader} against {self.runner_up} ({interval(self.asis)} as assumed):",
            *rows,
            said,
        ]

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "leader": self.leader,
            "runner_up": self.runner_up,
            "figure": self.figure,
            "as_assumed": self.asis.mean,
            "varied": [each.as_json() for each in self.varied],
        }
