"""Broken trace files by name: what is in them, and what the refusal must say."""

import json

import trace_files

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,5\n"
OWN = '{"format": "sglang-dspark-trace", "version": 1}\n{"arrival_s": 1, "input_length": 5, "output_length": 5}\n'
OWN_2 = OWN.replace('"version": 1', '"version": 2').replace("5}", '5, "cached_length": 2}')
OWN_BLOCKS = OWN.replace('"version": 1', '"block_tokens": 4, "version": 2').replace("5}", '5, "hash_ids": [1, 2]}')
MOONCAKE = '{"timestamp": 0, "input_length": 5, "output_length": 5}\n'
BAILIAN = '{"chat_id": 1, "timestamp": 0, "input_length": 5, "output_length": 5}\n'

BROKEN = {
    "empty": ("", "is empty"),
    "blank": ("\n \n", "is empty"),
    "unknown columns": ("time,tokens\n1,2\n", "line 1: unknown trace format: got keys or columns 'time, tokens'"),
    "unknown keys": ('{"prompt": 3}\n', "line 1: unknown trace format: got keys or columns 'prompt'"),
    "half an object": ('{"timestamp": 0, "inp', "line 1: unknown trace format"),
    "binary": (bytes(range(255, -1, -1)) * 9, "line 1, byte 1: expected UTF-8 text, got byte 0xff"),
    "nul bytes": (b"\0" * 999, "line 1: unknown trace format"),
    "header alone": (AZURE, "line 1: expected at least one request below the header"),
    "negative length": (
        VIDUR + "1,-5,5\n",
        "line 3, column num_prefill_tokens: expected an integer 0 .. 2147483647, got '-5'",
    ),
    "nan length": (
        VIDUR + "1,5,nan\n",
        "line 3, column num_decode_tokens: expected an integer 0 .. 2147483647, got 'nan'",
    ),
    "huge length": (VIDUR + f"1,{'9' * 5000},5\n", "line 3, column num_prefill_tokens: expected an integer 0 .. 2147"),
    "length above int32": (VIDUR + "1,5,2147483648\n", "line 3, column num_decode_tokens: expected an integer"),
    "fractional length": (VIDUR + "1,5,5.5\n", "line 3, column num_decode_tokens: expected an integer"),
    "underscore": (VIDUR + "1,5_0,5\n", "line 3, column num_prefill_tokens: expected an integer"),
    "arabic digits": (VIDUR + "1,5,\u0665\n", "line 3, column num_decode_tokens: expected an integer"),
    "nan stamp": (VIDUR + "nan,5,5\n", "line 3, column arrived_at: expected seconds 0 .. 1e+10, got 'nan'"),
    "inf stamp": (VIDUR + "inf,5,5\n", "line 3, column arrived_at: expected seconds"),
    "negative stamp": (VIDUR + "-1,5,5\n", "line 3, column arrived_at: expected seconds 0 .. 1e+10, got '-1'"),
    "overflowing stamp": (VIDUR + "1e99,5,5\n", "line 3, column arrived_at: expected seconds"),
    "missing value": (
        VIDUR + "1,,5\n",
        "line 3, column num_prefill_tokens: expected an integer 0 .. 2147483647, got ''",
    ),
    "too few columns": (VIDUR + "1,5\n", "line 3: expected 3 columns, got 2"),
    "too many columns": (VIDUR + "1,5,5,5\n", "line 3: expected 3 columns, got 4"),
    "open quote": (VIDUR + '1,5,"5\n6,6,6\n', "line 4: expected comma-separated values: unexpected end of data"),
    "line in a field": (VIDUR + '1,5,"5\n6"\n', "line 4, column num_decode_tokens: expected an integer"),
    "after blank lines": (VIDUR + "\n\n1,x,5\n", "line 5, column num_prefill_tokens"),
    "no such day": (AZURE + "2023-02-30 00:00:00.5,5,5\n", "line 2, column TIMESTAMP: expected a UTC time"),
    "not UTC": (AZURE + "2024-05-10 00:00:00.5+02:00,5,5\n", "line 2, column TIMESTAMP: expected a UTC time"),
    "no date": (AZURE + "12.5,5,5\n", "line 2, column TIMESTAMP: expected a UTC time"),
    "nothing to serve": (VIDUR.replace("5", "0"), "expected a request with tokens, got 1 requests with none"),
    "mooncake negative": (
        MOONCAKE + MOONCAKE.replace("5", "-5"),
        "line 2, column input_length: expected an integer 0 .. 2147483647, got '-5'",
    ),
    "mooncake text": (
        MOONCAKE + MOONCAKE.replace("5", '"5"'),
        "line 2, column input_length: expected an integer 0 .. 2147483647, got '\"5\"'",
    ),
    "mooncake huge": (
        MOONCAKE + MOONCAKE.replace("5", "9" * 400),
        "line 2, column input_length: expected an integer 0 .. 2147483647, got '9999",
    ),
    "mooncake float": (
        MOONCAKE + MOONCAKE.replace("5", "655.5"),
        "line 2, column input_length: expected an integer 0 .. 2147483647, got '655.5'",
    ),
    "mooncake negative stamp": (
        MOONCAKE + MOONCAKE.replace("0", "-1"),
        "line 2, column timestamp: expected milliseconds 0 .. 1e+13, got '-1'",
    ),
    "mooncake null stamp": (
        MOONCAKE + MOONCAKE.replace("0", "null"),
        "line 2, column timestamp: expected milliseconds 0 .. 1e+13, got 'null'",
    ),
    "mooncake stamp missing": (
        MOONCAKE + MOONCAKE.replace('"timestamp": 0, ', ""),
        "line 2, column timestamp: expected timestamp for every request or for none",
    ),
    "stamp after none": (
        MOONCAKE.replace('"timestamp": 0, ', "") + MOONCAKE,
        "line 2, column timestamp: expected timestamp for every request or for none",
    ),
    "own without header": (OWN.splitlines()[1], "line 1: unknown trace format: got keys or columns 'arrival_s, input"),
    "git lfs": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:44bf\nsize 144819209\n",
        "is a Git LFS pointer, not the trace itself: expected the file that `git lfs pull` fetches",
    ),
    "mooncake NaN": (MOONCAKE + MOONCAKE.replace("0", "NaN"), "line 2: expected one JSON object"),
    "mooncake overflow": (MOONCAKE + MOONCAKE.replace("0", "1e999"), "line 2"),
    "mooncake no key": (MOONCAKE + '{"timestamp": 0}\n', "line 2, column input_length: expected this key, got none"),
    "mooncake list": (MOONCAKE + "[]\n", "line 2: expected one JSON object (Expected `object`, got `array`), got '[]'"),
    "mooncake cut": (MOONCAKE + MOONCAKE[:20], "line 2: expected one JSON object"),
    "mooncake deep": (MOONCAKE + MOONCAKE[:-2] + ', "x": ' + "[" * 100_000 + "\n", "line 2: expected one JSON object"),
    "mooncake surrogate": (MOONCAKE + '{"\\ud800": 1}\n', "line 2"),
    "bailian no id": (BAILIAN + MOONCAKE, "line 2, column chat_id: expected this key, got none"),
    "bailian huge id": (
        BAILIAN.replace("1", "9" * 5000),
        "line 1, column chat_id: expected integer value within range, got '9999",
    ),
    "own unprintable key": (
        OWN.replace('"version"', '"a\\nb": 1, "version"'),
        "line 1, column 'a\\nb': expected no such key",
    ),
    "own unprintable domain": (
        trace_files.own().replace('["math"', '["ma\\nth"'),
        "line 2, column domain: expected one of ma th, chat, got 'math'",
    ),
    "own many domains": (
        OWN.replace('"version"', f'"domains": {json.dumps([str(n) for n in range(2**15)])}, "version"'),
        "line 1, column domains: expected at most 32767 domains, got 32768",
    ),
    "own many new domains": (
        OWN.splitlines()[0] + "".join(f'\n{OWN.splitlines()[1][:-1]}, "domain": "{n}"}}' for n in range(2**15)),
        "line 32769, column domain: expected at most 32767 domains",
    ),
    "own version": (
        OWN.replace('"version": 1', '"codec": "x", "version": 3'),
        "line 1, column version: expected version 1 or 2 (for a newer one update sglang-dspark, or write the trace "
        "with this release), got 3",
    ),
    "own first version has no cached": (
        OWN.replace("5}", '5, "cached_length": 2}'),
        "line 2, column cached_length: expected no such key",
    ),
    "own first version has stamps": (
        OWN.replace('"arrival_s": 1, ', ""),
        "line 2, column arrival_s: expected this key, got none",
    ),
    "own cached": (
        OWN_2 + OWN_2.splitlines()[1].replace('"cached_length": 2', '"cached_length": 5'),
        "line 3, column cached_length: expected fewer than the 5 prompt tokens, got 5",
    ),
    "own some cached": (
        OWN_2 + OWN.splitlines()[1],
        "line 3, column cached_length: expected cached_length for every request or for none",
    ),
    "own first version has no max_tokens": (
        OWN.replace("5}", '5, "max_tokens": 9}'),
        "line 2, column max_tokens: expected no such key",
    ),
    "own max_tokens below the answer": (
        OWN_2.replace('"cached_length": 2', '"max_tokens": 4'),
        "line 2, column max_tokens: expected at least the 5 generated tokens, got 4",
    ),
    "own some max_tokens": (
        OWN_2 + OWN_2.splitlines()[1].replace("2}", '2, "max_tokens": 9}'),
        "line 3, column max_tokens: expected max_tokens for every request or for none",
    ),
    "own negative cached": (
        OWN_2.replace('"cached_length": 2', '"cached_length": -1'),
        "line 2, column cached_length: expected an integer 0 .. 2147483647, got '-1'",
    ),
    "own blocks without their size": (
        OWN_BLOCKS.replace('"block_tokens": 4, ', ""),
        "line 2, column hash_ids: expected block_tokens in the header",
    ),
    "own too many blocks": (
        OWN_BLOCKS.replace("[1, 2]", "[1, 2, 3]"),
        "line 2, column hash_ids: expected at most 2 blocks of 4 tokens for 5 prompt tokens, got 3",
    ),
    "own blocks and cached": (
        OWN_BLOCKS.replace('"hash_ids"', '"cached_length": 2, "hash_ids"'),
        "line 2, column hash_ids: expected hash_ids or cached_length, not both",
    ),
    "own first version has no blocks": (
        OWN.replace("5}", '5, "hash_ids": [1]}'),
        "line 2, column hash_ids: expected no such key",
    ),
    "own block of no tokens": (
        OWN_BLOCKS.replace('"block_tokens": 4', '"block_tokens": 0'),
        "line 1, column block_tokens: expected int >= 1, got '0'",
    ),
    "mooncake negative block": (
        MOONCAKE.replace("5}", '5, "hash_ids": [3, -4]}'),
        "line 1, column hash_ids: expected a list of integers 0 .. 9223372036854775807, got '[3, -4]'",
    ),
    "mooncake block in words": (
        MOONCAKE.replace("5}", '5, "hash_ids": ["a"]}'),
        "line 1, column hash_ids: expected a list of integers 0 .. 9223372036854775807, got '[\"a\"]'",
    ),
    "mooncake blocks that are no list": (
        MOONCAKE.replace("5}", '5, "hash_ids": 3}'),
        "line 1, column hash_ids: expected a list of integers 0 .. 9223372036854775807, got '3'",
    ),
    "mooncake blocks of another size": (
        MOONCAKE.replace("5}", '5, "hash_ids": [3, 4]}'),
        "1 of 1 requests have more hash_ids than blocks of 512 tokens in their prompt: --block-tokens says another",
    ),
    "own some stamps": (
        OWN_2 + OWN_2.splitlines()[1].replace('"arrival_s": 1, ', ""),
        "line 3, column arrival_s: expected arrival_s for every request or for none",
    ),
    "own format": (OWN.replace("sglang", "x"), "line 1, column format: expected 'sglang-dspark-trace', got 'x-dspark"),
    "own header key": (OWN.replace('"version"', '"x": 1, "version"'), "line 1, column x: expected no such key"),
    "own key": (
        OWN.replace('"arrival_s"', '"domian": "a", "arrival_s"'),
        "line 2, column domian: expected no such key",
    ),
    "own zero": (OWN.replace("5", "0"), "line 2, column input_length: expected an integer 1 .. 2147483647, got '0'"),
    "own alone": (OWN.splitlines()[0], "line 1: expected at least one request"),
    "own disorder": (
        OWN + OWN.splitlines()[1].replace("1,", "0.5,"),
        "line 3, column arrival_s: expected arrivals in order",
    ),
    "own count": (
        OWN.replace('"version"', '"requests": 3, "version"'),
        "column requests: expected 3 requests as the header",
    ),
    "own some domains": (
        OWN + OWN.splitlines()[1].replace("}", ', "domain": "a"}'),
        "line 3, column domain: expected domain for",
    ),
    "own domain": (
        trace_files.own().replace('"domain": "chat"', '"domain": "code"'),
        "line 3, column domain: expected one of math, chat",
    ),
    "own same domains": (
        trace_files.own().replace('"chat"]', '"math"]'),
        "line 1, column domains: expected different names",
    ),
}
