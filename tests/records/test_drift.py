"""The drift watch: says once that a profile no longer holds, and once that it holds again."""

import logging
from types import SimpleNamespace

import numpy as np

from sglang_dspark.serving.feedback.drift import WINDOW, DriftWatch


def feed(watch, ratio, windows=1, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(windows * WINDOW):
        measured = 0.01 * ratio * float(np.exp(noise * rng.standard_normal()))
        watch.on_step(SimpleNamespace(step_s=measured, decision=SimpleNamespace(predicted_s=0.01)))


def test_a_change_is_logged_once_each_way(caplog):
    watch, seen = DriftWatch(lambda: "mine"), []
    watch.listeners.append(seen.append)
    assert watch.as_dict() == {"measured_over_predicted": None, "holds": None, "windows": 0}
    with caplog.at_level(logging.INFO):
        feed(watch, 1.1, windows=2, noise=0.3)
        assert watch.holds and not caplog.messages
        feed(watch, 1.6, windows=3)
        assert not watch.holds and len(caplog.messages) == 1 and "1.60 times" in caplog.messages[0]
        feed(watch, 0.9, windows=2)
    assert watch.holds and len(caplog.messages) == 2 and "holds again" in caplog.messages[1]
    assert len(seen) == watch.windows == 7 and seen[3] > 1.59 > seen[6]


def test_hiccups_do_not_count(caplog):
    watch = DriftWatch(lambda: "mine")
    for number in range(WINDOW):
        slow = 50.0 if number % 5 == 0 else 1.0
        watch.on_step(SimpleNamespace(step_s=0.01 * slow, decision=SimpleNamespace(predicted_s=0.01)))
    assert watch.holds and watch.ratio == 1.0


def test_steps_without_both_times_are_passed_over():
    watch = DriftWatch(lambda: None)
    for step_s, predicted in [(None, 0.01), (0.01, None), (0.01, 0.0)] * WINDOW:
        watch.on_step(SimpleNamespace(step_s=step_s, decision=SimpleNamespace(predicted_s=predicted)))
    assert watch.windows == 0
