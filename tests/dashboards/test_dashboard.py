"""The Grafana dashboard: it is what Grafana's schema says, and shows nothing that is not exported."""

import json
import re
from enum import Enum
from pathlib import Path
from typing import get_type_hints

import pytest

FILE = Path(__file__).parents[2] / "dashboards" / "dspark.json"
DOCUMENT = json.loads(FILE.read_text())
QUERIES = [target["expr"] for panel in DOCUMENT["panels"] for target in panel.get("targets", [])]


def differences(given, kept, path=""):
    """What the schema's own types did not take over as it stands."""
    if isinstance(given, dict):
        if not isinstance(kept, dict):
            return [path]
        return [line for key in given for line in differences(given[key], kept.get(key), f"{path}/{key}")]
    if isinstance(given, list):
        if not isinstance(kept, list) or len(given) != len(kept):
            return [path]
        return [
            line for i, pair in enumerate(zip(given, kept, strict=True)) for line in differences(*pair, f"{path}[{i}]")
        ]
    return [] if given == kept else [f"{path}: {given!r} became {kept!r}"]


def test_it_follows_grafanas_schema():
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="needs the extra `test`")
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from typeguard import check_type

    plugins.register_default_plugins()
    read = models.Dashboard.from_json(DOCUMENT)
    assert differences(DOCUMENT, json.loads(JSONEncoder(sort_keys=True).encode(read))) == []

    def typed(thing):
        """Every attribute is of the type that the schema gives it."""
        for name, kind in get_type_hints(type(thing)).items():
            value = getattr(thing, name)
            if isinstance(kind, type) and issubclass(kind, Enum):
                kind(value)
            elif "grafana_foundation_sdk" not in str(kind) and "enum" not in str(kind):
                check_type(value, kind)
            for one in value if isinstance(value, list) else [value]:
                if type(one).__module__.startswith("grafana_foundation_sdk") and not isinstance(one, Enum):
                    typed(one)

    typed(read)
    assert DOCUMENT["schemaVersion"] >= 36


def test_panels_have_titles_words_and_places_of_their_own():
    panels = DOCUMENT["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
    assert all(panel["description"] for panel in panels if panel["type"] != "row")
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


def test_queries_name_only_what_the_engine_exports():
    """Names by the source of the metrics; `_bucket`, `_sum` and `_count` are of histograms."""
    source = (FILE.parents[1] / "sglang_dspark" / "serving" / "feedback" / "metrics.py").read_text()
    named = set(re.findall(r"sglang\[:_\]dspark_(\w+)\"", " ".join(QUERIES)))
    made = dict((name, kind) for kind, name in re.findall(r"make\.(counter|gauge|histogram)\(\s*\"(\w+)\"", source))
    made |= {f"position_{kind}_tokens": "counter" for kind in ("verified", "expected", "accepted")}
    made |= dict.fromkeys(("policy_info", "calibration_slope", "calibration_shift"), "gauge")
    made |= dict.fromkeys(("records_written", "records_dropped", "recording_stalled"), "gauge")
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    exported = {name + suffix for name, kind in made.items() for suffix in suffixes[kind]}
    assert named and named <= exported, named - exported
