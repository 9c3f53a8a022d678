"""The other ways to run the worker: overlapped, without the overlap loop, cap-accept, a shadow, exploration, plain."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("sglang", reason="needs the extra `serve`")

from live_server import LiveServer, write_profile  # noqa: E402

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

PROFILE = "--speculative-dspark-profile"
POLICY = "--speculative-dspark-policy"


def greedy_is_the_targets(server: LiveServer, prompts, reference) -> None:
    inputs = [reference.tokens(prompt)[:60] for prompt in prompts[::4][:8]]
    answers = server.generate_all(inputs, concurrency=8, tokens=40, ignore_eos=True)
    verdicts = [reference.judge(ids, answer["output_ids"]) for ids, answer in zip(inputs, answers, strict=True)]
    assert "different" not in verdicts, verdicts


def test_overlapped_with_a_shadow_and_exploration(demo_pair, prompts, reference, tmp_path: Path) -> None:
    flags = (PROFILE, str(write_profile(tmp_path / "made.json")), "--speculative-dspark-shadow-policy", "hull")
    with LiveServer(demo_pair, tmp_path / "log", *flags, "--speculative-dspark-explore", "0.2") as server:
        state = server.http.get("/dspark/policy").json()
        assert state["policy"].startswith("argmax") and state["parameters"]["lag"] == 2
        assert (state["schedule"], state["shadow"]) == ("overlapped", "hull")
        greedy_is_the_targets(server, prompts, reference)
        counters = server.counters()
        reasons = counters["steps_by_reason"]
        assert reasons["policy"] > reasons["explore"] > 0 and reasons["late"] == 0
        assert counters["shadow_steps"] == counters["decode_steps"] > 20
        assert server.switch("hull")["schedule"] == "synchronous"
        greedy_is_the_targets(server, prompts, reference)
        assert server.switch("argmax:lag=2")["schedule"] == "overlapped"


def test_without_the_overlap_loop(demo_pair, prompts, reference, tmp_path: Path) -> None:
    flags = (PROFILE, str(write_profile(tmp_path / "made.json")), POLICY, "hull", "--disable-overlap-schedule")
    with LiveServer(demo_pair, tmp_path / "log", *flags) as server:
        assert "normal loop" in server.log.read_text()
        greedy_is_the_targets(server, prompts, reference)
        server.switch("argmax:lag=1")
        greedy_is_the_targets(server, prompts, reference)
        assert server.counters()["verified_tokens"] > 0


def test_cap_accept_verifies_everything_and_says_so(demo_pair, prompts, reference, tmp_path: Path) -> None:
    environment = {"SGLANG_RAGGED_VERIFY_MODE": "cap-accept"}
    with LiveServer(demo_pair, tmp_path / "log", POLICY, "fixed:k=2", env=environment) as server:
        assert "saves no compute" in server.log.read_text()
        greedy_is_the_targets(server, prompts, reference)
        counters = server.counters()
        assert counters["verified_tokens"] == 2 * counters["anchors"]


@pytest.mark.parametrize("environment", [{}, {"SGLANG_PLUGINS": "dspark_cpu,sglang_dspark"}])
def test_none_of_our_flags_is_sglangs_own_worker(demo_pair, prompts, reference, tmp_path, environment) -> None:
    with LiveServer(demo_pair, tmp_path / "log", env=environment) as server:
        text = server.log.read_text()
        assert "sglang-dspark: policy" not in text
        assert server.http.get("/dspark/policy").status_code == 404
        assert "dspark" not in server.http.get("/server_info").json()["internal_states"][0]
        greedy_is_the_targets(server, prompts, reference)


def test_our_kernels_references_serve_the_same_text(demo_pair, prompts, reference, tmp_path: Path) -> None:
    flags = (PROFILE, str(write_profile(tmp_path / "made.json")), POLICY, "hull")
    with LiveServer(demo_pair, tmp_path / "log", *flags, "--speculative-dspark-kernels", "ours") as server:
        assert "sglang-dspark kernels: markov: ours" in server.log.read_text()
        greedy_is_the_targets(server, prompts, reference)
        assert server.counters()["verified_tokens"] > 0


def test_only_a_test_build_runs_a_biased_policy(demo_pair, tmp_path: Path) -> None:
    from biased_build import biased_environment

    flags = (PROFILE, str(write_profile(tmp_path / "made.json")), POLICY, "argmax-live")
    with pytest.raises(RuntimeError, match="not lossless"), LiveServer(demo_pair, tmp_path / "refused", *flags):
        pass
    with LiveServer(demo_pair, tmp_path / "log", *flags, env=biased_environment(tmp_path / "plugin")) as server:
        assert server.http.get("/dspark/policy").json()["policy"] == "argmax-live"
        server.works()


def test_two_ranks_run_one_policy(demo_pair, prompts, reference, tmp_path: Path) -> None:
    """The same steps switch on both, across schedules, and a failed trial goes back on both."""
    flags = (PROFILE, str(write_profile(tmp_path / "made.json")))

    def agreed(answer: dict, policy: str) -> None:
        ranks = answer["ranks"]
        assert [rank["rank"] for rank in ranks] == [0, 1] and {rank["policy"] for rank in ranks} == {policy}
        assert len({rank["since_step"] for rank in ranks}) == 1

    with LiveServer(demo_pair, tmp_path / "log", *flags, "--tp", "2") as server:
        for policy in ("argmax:lag=1", "hull", "argmax:lag=2,calibrate=online", "foresight:lag=2", "fixed:k=3"):
            agreed(server.switch(policy), policy)
            greedy_is_the_targets(server, prompts, reference)
        server.generate_all(prompts[:8], 8, tokens=100, temperature=1.0, ignore_eos=True)
        tried = server.http.post("/dspark/policy", json={"policy": "tetris:capacity=1", "trial_s": 60}).json()
        agreed(tried, "tetris:capacity=1")
        deadline = time.monotonic() + 150
        while tried["trial"]["verdict"] == "running" and time.monotonic() < deadline:
            server.generate_all(prompts[:8], 8, tokens=60, temperature=1.0, ignore_eos=True)
            tried = server.http.get("/dspark/policy").json()
        assert tried["trial"]["verdict"] == "reverted", tried["trial"]
        agreed(tried, "fixed:k=3")
        greedy_is_the_targets(server, prompts, reference)
