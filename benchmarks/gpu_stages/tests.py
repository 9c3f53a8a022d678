"""The tests that need a GPU, and in a rehearsal that they are collected."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from gpu_stages import Skip, Stage

FOLDERS = ("tests/kernels", "tests/serving")


def run(stage: Stage) -> None:
    report = stage.out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfEs", f"--junitxml={report}", *FOLDERS]
    subprocess.run(command, check=False)
    if not report.is_file():
        raise RuntimeError("pytest wrote no report, see tests.log")
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in suite.iter("testcase") if _failed(case)]
    stage.note(**counts, failed=failed, slowest=_slowest(suite))
    if failed:
        raise RuntimeError(f"{len(failed)} of {counts['tests']} tests failed")
    if counts["skipped"] == counts["tests"]:
        reasons = {entry.get("message") for entry in suite.iter("skipped")}
        raise Skip("; ".join(sorted(str(reason) for reason in reasons)))


def _failed(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


def _slowest(suite: ElementTree.Element) -> dict[str, float]:
    cases = sorted(suite.iter("testcase"), key=lambda case: -float(case.get("time", 0)))[:5]
    return {str(case.get("name")): float(case.get("time", 0)) for case in cases}
