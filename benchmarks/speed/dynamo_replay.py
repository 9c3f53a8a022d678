"""Child of peer.py in an interpreter that need have nothing but Dynamo: CPU seconds of one replay, when asked.

Run: python dynamo_replay.py MOONCAKE_FILE BLOCK_TOKENS
"""

import json
import os
import sys
import time
from importlib.metadata import version

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the peer logs is no answer
try:
    from dynamo.replay.api import run_trace_replay
except ImportError as error:
    sys.exit(f"{sys.executable} cannot import the peer: {error}")

print(json.dumps({"version": version("ai-dynamo")}), file=answers, flush=True)
for line in sys.stdin:
    start, clock = time.process_time(), time.perf_counter()
    report = run_trace_replay(sys.argv[1], trace_block_size=int(sys.argv[2]))
    seconds, clock = time.process_time() - start, time.perf_counter() - clock
    completed, expected = report.summary["completed_requests"], json.loads(line)["requests"]
    if completed != expected:
        sys.exit(f"the peer completed {completed} requests, expected {expected}")
    print(
        json.dumps({"seconds": seconds, "reading": clock - report.summary["wall_time_ms"] / 1000}),
        file=answers,
        flush=True,
    )
