"""Seeded generators of structured text (JSON, CSV, logs): easier to draft than code, so that confidence varies."""

import json
from collections.abc import Callable
from random import Random

_FIRST = (
    "Ada Alan Barbara Claude Donald Edith Frances Grace Hedy Ivan John Karen Leslie Margaret Niklaus "
    "Radia Shafi Tim Ursula Vint"
).split()
_LAST = (
    "Hopper Turing Liskov Shannon Knuth Clarke Allen Lamarr Sutherland McCarthy Lamport Hamilton Wirth "
    "Perlman Goldwasser Lee Franklin Cerf Dijkstra Backus"
).split()
_CITIES = "Amsterdam Berlin Cairo Dublin Edinburgh Florence Geneva Helsinki Istanbul Jakarta Kyoto Lisbon".split()
_PRODUCTS = ("keyboard", "monitor", "notebook", "headset", "charger", "webcam", "printer", "tablet")
_SERVICES = ("auth", "billing", "catalog", "gateway", "mailer", "scheduler", "search", "storage")
_PATHS = ("/api/v1/users", "/api/v1/orders", "/api/v1/items", "/health", "/login", "/metrics", "/static/app.js")
_TAGS = ("new", "vip", "trial", "churned", "partner", "internal")


def _clock(rng: Random, seconds: int) -> tuple[str, int]:
    """A date-time `YYYY-MM-DDTHH:MM:SS` for `seconds` of a fixed month, and the clock some seconds later."""
    day, rest = divmod(seconds, 86400)
    stamp = f"2024-03-{1 + day % 28:02d}T{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return stamp, seconds + rng.randrange(1, 4)


def _user(rng: Random, number: int, stamp: str) -> dict[str, object]:
    first, last = rng.choice(_FIRST), rng.choice(_LAST)
    return {
        "id": number,
        "name": f"{first} {last}",
        "email": f"{first.lower()}.{last.lower()}@example.com",
        "city": rng.choice(_CITIES),
        "active": rng.random() < 0.8,
        "created_at": stamp,
        "tags": rng.sample(_TAGS, rng.choice((0, 1, 1, 2))),
    }


def _order(rng: Random, number: int, stamp: str) -> dict[str, object]:
    lines = [
        {"product": rng.choice(_PRODUCTS), "quantity": rng.choice((1, 1, 1, 2, 3)), "price": rng.randrange(5, 100)}
        for _ in range(rng.choice((1, 1, 2, 3)))
    ]
    return {
        "order": number,
        "status": rng.choice(("paid", "paid", "shipped", "shipped", "cancelled")),
        "placed_at": stamp,
        "lines": lines,
        "currency": "EUR",
        "shipping": {"city": rng.choice(_CITIES), "express": rng.random() < 0.2},
    }


def _reading(rng: Random, number: int, stamp: str) -> dict[str, object]:
    return {
        "sensor": f"sensor-{rng.randrange(1, 9)}",
        "sequence": number,
        "time": stamp,
        "unit": "celsius",
        "value": round(rng.uniform(15, 30), 1),
        "ok": rng.random() < 0.95,
    }


def json_document(rng: Random) -> str:
    """One JSON array of records of one schema, indented or one record a line."""
    make = rng.choice((_user, _order, _reading))
    clock, number, records = rng.randrange(86400 * 28), rng.randrange(1, 900), []
    for _ in range(rng.randrange(20, 50)):
        stamp, clock = _clock(rng, clock)
        records.append(make(rng, number, stamp))
        number += 1
    if rng.random() < 0.7:
        return json.dumps(records, indent=2) + "\n"
    return "\n".join(json.dumps(record) for record in records) + "\n"


def csv_document(rng: Random) -> str:
    """One CSV table: sales with a derived total, or readings of several sensors in turn."""
    clock, number = rng.randrange(86400 * 28), rng.randrange(1, 900)
    sales = rng.random() < 0.6
    rows = ["id,date,customer,city,product,quantity,price,total" if sales else "time,sensor,celsius,humidity,status"]
    for _ in range(rng.randrange(40, 120)):
        stamp, clock = _clock(rng, clock)
        if sales:
            quantity, price = rng.choice((1, 1, 1, 2, 3)), rng.randrange(5, 100)
            who = f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"
            rows.append(
                f"{number},{stamp[:10]},{who},{rng.choice(_CITIES)},{rng.choice(_PRODUCTS)},"
                f"{quantity},{price}.00,{quantity * price}.00"
            )
        else:
            status = rng.choices(("ok", "low battery", "offline"), (90, 7, 3))[0]
            rows.append(f"{stamp},sensor-{1 + number % 8},{rng.uniform(15, 30):.1f},{rng.randrange(30, 70)},{status}")
        number += 1
    return "\n".join(rows) + "\n"


def _log_message(rng: Random, service: str) -> tuple[str, str]:
    """Level and message of one line."""
    kind = rng.random()
    if kind < 0.5:
        status = rng.choices((200, 201, 304, 404, 500), (80, 6, 6, 6, 2))[0]
        level = "ERROR" if status == 500 else "WARNING" if status == 404 else "INFO"
        method = "POST" if status == 201 else "GET"
        return level, f"{method} {rng.choice(_PATHS)} status={status} duration_ms={rng.randrange(1, 200)}"
    if kind < 0.7:
        return "DEBUG", f"cache {rng.choice(('hit', 'hit', 'hit', 'miss'))} key=user:{rng.randrange(1, 500)}"
    if kind < 0.85:
        return "INFO", f"worker {rng.randrange(1, 5)} finished job {rng.randrange(1000, 9999)} in {service}"
    if kind < 0.95:
        return "WARNING", f"retrying connection to {rng.choice(_SERVICES)}.internal:5432 attempt={rng.randrange(1, 4)}"
    return "ERROR", f"connection to {rng.choice(_SERVICES)}.internal:5432 timed out after 30 seconds"


def log_document(rng: Random) -> str:
    """One service log: rising time stamps, levels, and messages from a few templates."""
    clock, lines = rng.randrange(86400 * 28), []
    main = rng.choice(_SERVICES)
    for _ in range(rng.randrange(40, 120)):
        stamp, clock = _clock(rng, clock)
        service = main if rng.random() < 0.8 else rng.choice(_SERVICES)
        level, message = _log_message(rng, service)
        lines.append(f"{stamp}.{rng.randrange(1000):03d}Z {level} [{service}] {message}")
    return "\n".join(lines) + "\n"


GENERATORS: dict[str, Callable[[Random], str]] = {
    "json": json_document,
    "csv": csv_document,
    "logs": log_document,
}
"""Document generator of each structured domain."""


def documents(domain: str, count: int, seed: int) -> list[str]:
    """`count` documents of `domain` ("json", "csv" or "logs"), a pure function of the three arguments."""
    rng = Random(f"{domain}/{seed}")
    return [GENERATORS[domain](rng) for _ in range(count)]
