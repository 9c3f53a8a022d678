"""Policies with their parameters; profiles, cost terms and drafters."""

from __future__ import annotations

from pages.text import code, plain, table


def policies_page() -> str:
    from sglang_dspark.cli.policies import described
    from sglang_dspark.policies import POLICIES

    parts = [
        "# Policies",
        "A policy is text, `NAME` or `NAME:parameter=value,...`, or a JSON file, in every command, on the server's "
        "command line and in `dspark policy`. [How it decides](../how_it_decides.md) says what the classes mean. "
        "Those that are not lossless run in the simulator only.",
    ]
    listed = [described(name) for name in POLICIES]
    parts.append(
        table(
            ["policy", "class", "lossless", ""],
            (
                [
                    f"[`{each['policy']}`](#{each['policy']})",
                    each["class"],
                    "yes" if each["lossless"] else "**no**",
                    plain(each["summary"]),
                ]
                for each in listed
            ),
        )
    )
    for each in listed:
        parts += [f"## {each['policy']}", plain(each["summary"])]
        if each["parameters"]:
            parts.append(
                table(
                    ["parameter", "default", "range", "meaning"],
                    (
                        [code(one["name"]), code(str(one["default"])), plain(one["expected"]), plain(one["meaning"])]
                        for one in each["parameters"]
                    ),
                )
            )
    return "\n\n".join(parts)


def profiles_page() -> str:
    from sglang_dspark.cost import TERMS, load_profile, profile_names
    from simulator.blocks.drafters import ALIASES, PUBLISHED
    from simulator.blocks.survival import accept_length

    models = {name: load_profile(name) for name in profile_names()}
    shorts = {each.name: short for short, each in ALIASES.items()}
    return "\n\n".join(
        [
            "# Profiles and drafters",
            "## Profiles that ship",
            "`--profile NAME`, or a file: ours, or SGLang's SPS table. Estimates were measured by nobody "
            "([how far they are off](../estimates.md)). `dspark profiles NAME` shows one in full.",
            table(
                ["profile", "", "hardware"],
                (
                    [
                        code(name),
                        "estimate" if model.is_estimate else "**measured**",
                        plain(str(model.meta.get("hardware", ""))),
                    ]
                    for name, model in models.items()
                ),
            ),
            "## Cost terms",
            "Beside its step times a profile gives these, or they are assumptions, which every result states. "
            "`--cost NAME=VALUE,...` replaces them.",
            table(
                ["term", "unit", "accepted", "meaning"],
                (
                    [code(name), plain(term.unit), f"{term.least:g} to {term.most:g}", plain(term.meaning)]
                    for name, term in TERMS.items()
                ),
            ),
            "## Drafters",
            "`--drafter NAME`: whose published acceptance is taken. `dspark drafters NAME` has positions and source.",
            table(
                ["drafter", "short", "gamma", "accept length by domain"],
                (
                    [
                        code(each.name),
                        code(shorts.get(each.name, "")),
                        str(each.gamma),
                        ", ".join(
                            f"{domain} {accept_length(values):.2f}" for domain, values in each.acceptance.items()
                        ),
                    ]
                    for each in PUBLISHED.values()
                ),
            ),
        ]
    )
