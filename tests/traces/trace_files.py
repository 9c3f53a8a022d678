"""Small trace files in every format, made from the same requests, for the tests beside this file."""

import json
from datetime import UTC, datetime, timedelta

#: Arrival in seconds, prompt tokens, generated tokens.
ROWS = ((0.0, 374, 44), (4.25, 396, 109), (4.25, 879, 55), (6.5, 91, 16), (17.125, 91, 1), (33.0, 381, 84))


def azure(rows=ROWS, zone: str = "", digits: int = 7) -> str:
    start = datetime(2023, 11, 16, 18, 15, 46, 680590, tzinfo=UTC)
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for arrival_s, prompt, answer in rows:
        stamp = (start + timedelta(seconds=arrival_s)).strftime("%Y-%m-%d %H:%M:%S.%f")
        stamp = stamp[: digits - 6] if digits < 6 else stamp + "0" * (digits - 6)
        lines.append(f"{stamp}{zone},{prompt},{answer}")
    return "\r\n".join(lines)  # the public files end their lines so, and not the last one


def burstgpt(rows=ROWS) -> str:
    lines = ["Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"]
    lines += [f"{19440110 + t},1722ac82,43,GPT-4,{i},{o},{i + o},Conversation log" for t, i, o in rows]
    return "\n".join(lines) + "\n"


def burstgpt_first(rows=ROWS) -> str:
    lines = ["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"]
    lines += [f"{5 + t},ChatGPT,{i},{o},{i + o},API log" for t, i, o in rows]
    return "\n".join(lines) + "\n"


def vidur(rows=ROWS) -> str:
    return "\n".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *(f"{t},{i},{o}" for t, i, o in rows)]) + "\n"


def sglang_log(rows=ROWS) -> str:
    """SGLang's JSON request log, a line a finished request."""
    lines = []
    for number, (arrival_s, prompt, output) in enumerate(rows):
        meta = {"prompt_tokens": prompt, "completion_tokens": output, "cached_tokens": 0}
        meta["request_received_ts"] = 1796000000 + arrival_s
        event = {"timestamp": "2026-11-30T10:00:00", "event": "request.finished", "rid": f"r{number}"}
        lines.append(json.dumps({**event, "obj": {}, "out": {"meta_info": meta}}))
    return "\n".join(lines) + "\n"


def hash_ids(prompt: int, block_tokens: int) -> list[int]:
    """Blocks of a prompt; all prompts begin with the same tokens."""
    return list(range(-(-prompt // block_tokens)))


def mooncake(rows=ROWS) -> str:
    return "".join(
        json.dumps({"timestamp": round(t * 1e3), "input_length": i, "output_length": o, "hash_ids": hash_ids(i, 512)})
        + "\n"
        for t, i, o in rows
    )


def bailian(rows=ROWS) -> str:
    return "".join(
        json.dumps(
            {"chat_id": n, "parent_chat_id": -1, "timestamp": t, "input_length": i, "output_length": o}
            | {"type": "text", "turn": 1, "hash_ids": hash_ids(i, 16)}
        )
        + "\n"
        for n, (t, i, o) in enumerate(rows)
    )


def own(rows=ROWS) -> str:
    lines = [{"format": "sglang-dspark-trace", "version": 1, "requests": len(rows), "domains": ["math", "chat"]}]
    lines += [
        {"arrival_s": t, "input_length": i, "output_length": o, "domain": "chat" if n % 2 else "math"}
        for n, (t, i, o) in enumerate(rows)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def own_2(rows=ROWS) -> str:
    lines = [{"format": "sglang-dspark-trace", "version": 2}]
    lines += [{"arrival_s": t, "input_length": i, "output_length": o, "cached_length": i // 2} for t, i, o in rows]
    return "".join(json.dumps(line) + "\n" for line in lines)


def own_2_blocks(rows=ROWS) -> str:
    lines = [{"format": "sglang-dspark-trace", "version": 2, "block_tokens": 100}]
    lines += [{"arrival_s": t, "input_length": i, "output_length": o, "hash_ids": hash_ids(i, 100)} for t, i, o in rows]
    return "".join(json.dumps(line) + "\n" for line in lines)


#: Name for the test, format that must be detected, text of the file.
FILES = (
    ("sglang log", "sglang-log", sglang_log()),
    ("azure-2023", "azure", azure()),
    ("azure-2024", "azure", azure(zone="+00:00", digits=6)),
    ("burstgpt-1", "burstgpt", burstgpt_first()),
    ("burstgpt-3", "burstgpt", burstgpt()),
    ("vidur", "vidur", vidur()),
    ("mooncake", "mooncake", mooncake()),
    ("bailian", "bailian", bailian()),
    ("own-1", "own", own()),
    ("own-2", "own", own_2()),
    ("own-2-blocks", "own", own_2_blocks()),
)
