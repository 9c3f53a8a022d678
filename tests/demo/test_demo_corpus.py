"""What the pair is trained on: well-formed, reproducible, and never also held out."""

import csv
import io
import json
from random import Random

import pytest

from sglang_dspark.demo.corpus import DOMAINS, held_out_prompts, load_corpus
from sglang_dspark.demo.structured import GENERATORS, documents, json_document


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(structured_documents=8, python_files=80)


def test_documents_are_a_pure_function_of_their_arguments() -> None:
    for domain in GENERATORS:
        assert documents(domain, 3, 0) == documents(domain, 3, 0)
        assert documents(domain, 3, 0) == documents(domain, 5, 0)[:3]
        assert not set(documents(domain, 20, 0)) & set(documents(domain, 20, 1))
        assert all(text.isascii() and text.endswith("\n") for text in documents(domain, 20, 0))


def test_json_documents_parse_whole_or_line_by_line() -> None:
    rng, forms = Random(0), set()
    for _ in range(40):
        text = json_document(rng)
        forms.add(text[0])
        records = json.loads(text) if text[0] == "[" else [json.loads(line) for line in text.splitlines()]
        assert len({tuple(record) for record in records}) == 1, "one schema a document"
    assert forms == {"[", "{"}


def test_csv_rows_have_their_header_s_width_and_totals_add_up() -> None:
    totals = 0
    for text in documents("csv", 30, 0):
        for row in csv.DictReader(io.StringIO(text)):
            assert None not in row and None not in row.values()
            if "total" in row:
                totals += 1
                assert float(row["total"]) == int(row["quantity"]) * float(row["price"])
    assert totals > 100


def test_log_lines_rise_in_time() -> None:
    for text in documents("logs", 10, 0):
        stamps = [line.split()[0] for line in text.splitlines()]
        days = [stamp[:10] for stamp in stamps]
        if days[0] == days[-1]:
            assert stamps == sorted(stamps)


def test_nothing_is_both_trained_on_and_held_out(corpus) -> None:
    for domain in DOMAINS:
        assert corpus.training[domain] and corpus.held_out[domain]
        long = {text for text in corpus.training[domain] if len(text) > 500}
        assert not long & set(corpus.held_out[domain])


def test_prompts_are_held_out_ascii_lines_and_reproducible(corpus) -> None:
    for domain in DOMAINS:
        prompts = held_out_prompts(corpus, domain, 12)
        assert prompts == held_out_prompts(corpus, domain, 12) and len(set(prompts)) == 12
        normal = ["\n".join(text.splitlines()) + "\n" for text in corpus.held_out[domain]]
        assert all(p.isascii() and p.endswith("\n") and any(p in text for text in normal) for p in prompts)
