"""Drafters out of published figures; the files and the rules are described in published/README.md."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import TypeVar

import msgspec
import numpy as np

from sglang_dspark.cost import Assumption
from simulator.blocks.drafter import METHODS, Acceptance, Drafter, Origin
from simulator.blocks.survival import Positions, conditionals, shifted_to_length

ByDomain = dict[str, list[float]]


class _Paper(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A figure or table of the DSpark paper: by method (and model) and domain."""

    source: str
    licence: str
    temperature: str
    data_sets: dict[str, list[str]]
    model: str = ""
    conditional: dict[str, ByDomain] = {}
    accept_length: dict[str, dict[str, ByDomain]] = {}

    def origin(self, model: str, method: str) -> Origin:
        """Its data sets in words."""
        data = ", ".join(f"{domain}: {'/'.join(names)}" for domain, names in self.data_sets.items())
        return Origin(model, METHODS[method].label, data, self.temperature, self.source, self.licence)


class _Series(msgspec.Struct, forbid_unknown_fields=True):
    """Accept lengths of one model by draft length 1.., one list a way of asking it."""

    name: str
    method: str
    model: str
    draft: str
    temperature: str
    run: str
    accept_length: dict[str, list[float]]


class _Golden(msgspec.Struct, forbid_unknown_fields=True):
    source: str
    licence: str
    data: str
    domain: str
    drafters: list[_Series]


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    """Survivals by position; several lists are averaged."""

    name: str
    method: str
    model: str
    draft: str
    data: str
    temperature: str
    source: str
    licence: str
    domain: str
    survival: list[list[float]]


class _Rows(msgspec.Struct, forbid_unknown_fields=True):
    drafters: list[_Row]


_Any = TypeVar("_Any")


def published_drafters() -> dict[str, Drafter]:
    """Every drafter that the package ships, by full name (method:model)."""
    figure, table = _read("figure2", _Paper), _read("table1", _Paper)
    found = [*_of_figure(figure), *_of_table(table, figure), *_of_lengths(), *_of_survivals()]
    return {drafter.name: drafter for drafter in found}


def _read(name: str, kind: type[_Any]) -> _Any:
    return msgspec.json.decode(files("simulator.blocks").joinpath("published", f"{name}.json").read_bytes(), type=kind)


def _of_figure(figure: _Paper) -> Iterator[Drafter]:
    for method, curves in figure.conditional.items():
        acceptance = {domain: tuple(values) for domain, values in curves.items()}
        name = f"{method}:{figure.model.lower()}"
        yield Drafter.of(name, METHODS[method], acceptance, origin=figure.origin(figure.model, method))


def _of_table(table: _Paper, figure: _Paper) -> Iterator[Drafter]:
    """The figure's shapes at the table's lengths; of the figure's own model under a name of its own."""
    for model, by_method in table.accept_length.items():
        for method, lengths in by_method.items():
            acceptance = {
                domain: shifted_to_length(figure.conditional[method][domain], float(np.mean(values)))
                for domain, values in lengths.items()
            }
            said = (
                f"positions of {model} are scaled: {figure.model}'s of Figure 2, shifted in logit space until the "
                "accepted length of a domain is the mean of its three data sets in Table 1"
            )
            stated = Assumption("acceptance", None, "", "the paper gives positions of one model only", said)
            name = f"{method}:{model.lower()}" + ("-table1" if model == figure.model else "")
            yield Drafter.of(
                name, METHODS[method], acceptance, origin=table.origin(model, method), assumptions=(stated,)
            )


def _of_lengths() -> Iterator[Drafter]:
    golden = _read("golden_accept_lengths", _Golden)
    for each in golden.drafters:
        survival, ends = falling_differences(list(each.accept_length.values()))
        asked = " and ".join(key.replace("_", " ") for key in each.accept_length)
        data = f"{golden.data} ({'mean of ' if len(each.accept_length) > 1 else ''}{asked})"
        source = f"{golden.source}, run {each.run}"
        origin = Origin(each.model, each.draft, data, each.temperature, source, golden.licence)
        acceptance, stated = _everywhere(golden.domain, "coding prompts", conditionals(survival))
        rule = Assumption(
            "acceptance_rule",
            None,
            "",
            "the source has accept lengths by draft length k",
            "survival at k is taken as AL(k) - AL(k - 1)",
        )
        yield Drafter.of(
            each.name, METHODS[each.method], acceptance, origin=origin, assumptions=(stated, rule), ends=ends
        )


def _of_survivals() -> Iterator[Drafter]:
    for row in _read("per_position", _Rows).drafters:
        survival = np.mean(row.survival, axis=0).tolist()
        acceptance, stated = _everywhere(row.domain, row.data, conditionals(survival))
        origin = Origin(row.model, row.draft, row.data, row.temperature, row.source, row.licence)
        yield Drafter.of(row.name, METHODS[row.method], acceptance, origin=origin, assumptions=(stated,))


def _everywhere(domain: str, what: str, conditional: Positions) -> tuple[Acceptance, Assumption]:
    """The only domain that a source has, for every request."""
    said = f"every request is accepted as the source's one workload is: {what}"
    return {domain: conditional}, Assumption("acceptance", domain, "", "the source has no other", said)


def falling_differences(lengths: list[list[float]]) -> tuple[list[float], str]:
    """Survivals AL(k) - AL(k - 1) of accept lengths by k, AL(0) = 1, mean of several lists, and why they end.

    An accept length that falls, or gains more than at the k before, was not measured with the draft of the k before:
    all lists end there.
    """
    steps = [np.diff(np.array([1.0, *each])).round(9).tolist() for each in lengths]
    positions, ends = min(map(len, steps)), ""
    for series, full in zip(steps, lengths, strict=True):
        for k in range(1, min(positions, len(series))):
            if not 0 < series[k] <= series[k - 1]:
                change = f"{full[k - 1]:.2f} at {k}, {full[k]:.2f} at {k + 1}"
                why = "falls" if series[k] <= 0 else "gains more than by the token before"
                positions = k
                ends = f"beyond {k} the accept length {why} ({change}), so that differences are no survivals"
                break
    return np.mean([series[:positions] for series in steps], axis=0).tolist(), ends
