"""What Prometheus reads of a sweep, over HTTP; and that the Grafana dashboard asks for nothing
else. No Ray: scripted trials."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels

from orchestrator.conductor import Conductor
from orchestrator.errors import MachineError
from orchestrator.ledger import State
from orchestrator.metrics import Metrics, exporting
from orchestrator.plan import Plan
from orchestrator.retry import Cause
from orchestrator.store import Store
from tests.driving import conductor_of, tiny_plan

DASHBOARD = Path(__file__).parents[1] / "dashboards" / "grafana" / "targetsweep.json"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def metrics(port: int) -> Iterator[Metrics]:
    with exporting(port) as serving:
        assert serving is not None
        yield serving


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return tiny_plan(tmp_path)


@pytest.fixture
def conductor(plan: Plan, tmp_path: Path, metrics: Metrics) -> Conductor:
    metrics.begin({"student": 2}, backlog=lambda: 3)
    conductor = conductor_of(plan, Store(tmp_path / "store"), [metrics], slots=2)
    metrics.watch(conductor)
    return conductor


def scrape(port: int) -> Samples:
    """Every sample that is served, by its name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    found = [sample for family in families for sample in family.samples]
    return {(one.name, frozenset(one.labels.items())): one.value for one in found}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"targetsweep_{name}", frozenset(labels.items())]


def begin(conductor: Conductor) -> str:
    config = conductor.next_trial()
    assert config is not None
    return str(config["unit"])


def test_runs_steps_devices_and_backlog(conductor: Conductor, port: int, plan: Plan) -> None:
    before = scrape(port)
    assert value(before, "runs", kind="student", state="done") == 2
    assert value(before, "runs", kind="teacher", state="ready") == 1
    waiting = sum(
        number
        for (name, labels), number in before.items()
        if name == "targetsweep_runs" and ("state", "waiting") in labels
    )
    assert waiting == conductor.ledger.count(State.WAITING) > 0
    assert value(before, "tracking_backlog") == 3
    assert value(before, "devices", state="free") == 2

    unit = begin(conductor)
    conductor.on_report({"unit": unit, "event": "started", "first_step": 11})
    conductor.on_report({"unit": unit, "event": "progress", "step": 30})
    during = scrape(port)
    assert value(during, "devices", state="used") == 1
    assert value(during, "steps_total") == 20
    assert value(during, "steps_per_second") > 0
    assert value(during, "steps_left") < value(before, "steps_left")
    assert value(during, "last_report_age_seconds") >= 0


def test_failures_are_counted_by_cause_and_decision(conductor: Conductor, port: int) -> None:
    unit = begin(conductor)
    conductor.on_end(unit, lost=True)
    lost = {"cause": Cause.WORKER_LOST.value, "decision": "retry"}
    assert value(scrape(port), "failures_total", **lost) == 1
    assert value(scrape(port), "failures_total", cause=Cause.ERROR.value, decision="failed") == 0

    unit = begin(conductor)
    conductor.on_report({"unit": unit, "event": "failed", "cause": "error", "message": "KeyError"})
    conductor.on_end(unit, lost=False)
    samples = scrape(port)
    assert value(samples, "failures_total", cause="error", decision="failed") == 1
    assert value(samples, "runs", kind="teacher", state="failed") == 1
    assert value(samples, "runs", kind="student", state="blocked") > 0


def test_counters_go_on_with_the_next_plan(
    conductor: Conductor, metrics: Metrics, port: int, plan: Plan, tmp_path: Path
) -> None:
    """Measured pilots drive their teachers first, then the rest."""
    unit = begin(conductor)
    conductor.on_report({"unit": unit, "event": "started", "first_step": 1})
    conductor.on_report({"unit": unit, "event": "progress", "step": 7})
    conductor.on_end(unit, lost=True)
    metrics.begin({})
    assert value(scrape(port), "steps_total") == 7
    assert value(scrape(port), "runs", kind="teacher", state="ready") == 0
    metrics.watch(conductor_of(plan, Store(tmp_path / "other"), [metrics]))
    samples = scrape(port)
    assert value(samples, "steps_total") == 7
    assert value(samples, "runs", kind="teacher", state="ready") == 1


def test_a_driver_that_is_busy_is_not_waited_for(
    conductor: Conductor, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.metrics._PATIENCE_S", 0.01)
    before = scrape(port)
    with conductor.lock:
        during = scrape(port)
    assert value(during, "steps_left") == value(before, "steps_left")


def test_a_taken_port_is_an_error_with_a_remedy(metrics: Metrics, port: int) -> None:
    with pytest.raises(MachineError, match=f"127.0.0.1:{port}"), exporting(port):
        pass


def test_nothing_is_served_unasked() -> None:
    with exporting(None) as metrics:
        assert metrics is None


# -- the dashboard ---------------------------------------------------------------------------------

_SERIES = re.compile(r"\b(targetsweep_\w+|ray_\w+|process_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')
_BY = re.compile(r"by \(([^)]*)\)")
_OF_THE_SCRAPE = {"job", "instance"}
"""Labels that Prometheus adds."""


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def legends() -> list[tuple[str, str]]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [(t["expr"], t["legendFormat"]) for p in panels for t in p.get("targets", [])]


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert board["uid"] == "targetsweep"
    assert board["schemaVersion"] >= 39
    assert "datasource" in {one["name"] for one in board["templating"]["list"]}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]


def test_the_dashboard_asks_for_what_the_driver_serves(conductor: Conductor, port: int) -> None:
    served: dict[str, dict[str, set[str]]] = {}
    for name, labels in scrape(port):
        values = served.setdefault(name, {})
        for label, one in labels:
            values.setdefault(label, set()).add(one)
    asked = set()
    for expression in expressions():
        ours = [found for found in _SERIES.findall(expression) if not found[0].startswith("ray_")]
        for name, matchers in ours:
            asked.add(name)
            for label, _, wanted in _MATCHER.findall(matchers):
                if label not in _OF_THE_SCRAPE:
                    assert set(wanted.split("|")) <= served[name][label], expression
            for group in _BY.findall(expression):
                assert set(group.split(", ")) <= served[name].keys() | _OF_THE_SCRAPE, expression
        if ours:
            assert ours[0][0] in served, expression
    assert {name for name in served if name.startswith("targetsweep_")} == {
        name for name in asked if name.startswith("targetsweep_")
    }


def test_the_dashboard_asks_for_what_ray_serves() -> None:
    """Against the queries of Ray's own dashboards: names, and labels of the same series."""
    text = Path(default_dashboard_panels.__file__).read_text().replace("{{", "{").replace("}}", "}")
    known: dict[str, set[str]] = {}
    for query in re.findall(r"expr=f?['\"](.*)['\"],?$", text, re.MULTILINE):
        groups = {one.strip() for group in _BY.findall(query) for one in group.split(",")}
        for name, matchers in re.findall(r"\b(ray_\w+)(?:\{(.*?)\}\)|\{|\b)", query):
            labels = {label for label, *_ in _MATCHER.findall(matchers)}
            known.setdefault(name, set()).update(labels | groups)
    asked = {name for one in expressions() for name, _ in _SERIES.findall(one)}
    assert {name for name in asked if name.startswith("ray_")} <= known.keys()
    anywhere = {"SessionName", "instance"}
    for expression, legend in legends():
        for name, matchers in _SERIES.findall(expression):
            if name.startswith("ray_"):
                used = {label for label, *_ in _MATCHER.findall(matchers)}
                used |= set(re.findall(r"{{(\w+)}}", legend))
                assert used <= known[name] | anywhere, (name, used - known[name])
