"""`dspark demo-model` end to end at the micro size: the files it leaves, reuse, refusals, interruption."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the demo pair needs torch (extra `serve`)")
pytest.importorskip("transformers", reason="the demo pair needs transformers (extra `serve`)")

from typer.testing import CliRunner  # noqa: E402

from sglang_dspark.cli import app  # noqa: E402
from sglang_dspark.demo import build as building  # noqa: E402
from sglang_dspark.demo.pair import load_pair, weights_hash  # noqa: E402
from sglang_dspark.demo.recipe import Request  # noqa: E402
from sglang_dspark.demo.reference import generate  # noqa: E402
from sglang_dspark.errors import InputError  # noqa: E402

MICRO = Request(size="micro", threads=1)


def ignore(*_: object) -> None:
    """No progress shown."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "pair"
    building.build(path, MICRO, ignore)
    return path


def test_files_are_those_of_a_checkpoint_and_nothing_else_is_left(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["demo.json", "draft", "prompts", "target"]
    assert [p.name for p in folder.parent.iterdir()] == ["pair"]
    config = json.loads((folder / "draft" / "config.json").read_text())
    wanted = {
        "architectures": ["Qwen3DSparkModel"],
        "block_size": 7,
        "mask_token_id": 1,
        "target_layer_ids": [0, 1],
        "markov_head_type": "vanilla",
        "markov_rank": 8,
        "num_hidden_layers": 1,
        "num_target_layers": 3,
        "enable_confidence_head": True,
        "confidence_head_with_markov": True,
        "layer_types": ["full_attention"],
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
        "dtype": "float32",
    }
    assert {key: config[key] for key in wanted} == wanted
    for domain in ("python", "json", "csv", "logs"):
        lines = (folder / "prompts" / f"{domain}.jsonl").read_text().splitlines()
        assert len(lines) == 64 and all(list(json.loads(line)) == ["turns"] for line in lines)


def test_loaded_pair_generates_and_its_hash_is_the_manifest_s(folder: Path) -> None:
    pair, manifest = load_pair(folder), building.read_manifest(folder)
    assert weights_hash(folder) == manifest["weights_sha256"]
    prompt = pair.tokenizer("import os\n")["input_ids"]
    assert len(generate(pair, prompt, 8, 1.0, torch.Generator().manual_seed(0)).tokens) == 8
    assert set(manifest["acceptance"]) == {"T=0", "T=1"}


def test_tokenizer_takes_any_text_and_chats_by_continuing(folder: Path) -> None:
    tokenizer = load_pair(folder).tokenizer
    text = "def f(x):\n\treturn 'naïve 日本 🙂' # 2024\r\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    messages = [{"role": "system", "content": "a = "}, {"role": "user", "content": "1\n"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == "a = 1\n"
    assert tokenizer.eos_token_id == 0 and tokenizer.convert_tokens_to_ids("<|mask|>") == 1


def test_json_schema_grammar_accepts_json_in_the_pair_s_tokens(folder: Path) -> None:
    xgrammar = pytest.importorskip("xgrammar", reason="comes with sglang (extra `serve`)")
    pair = load_pair(folder)
    info = xgrammar.TokenizerInfo.from_huggingface(pair.tokenizer, vocab_size=pair.target.config.vocab_size)
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    compiled = xgrammar.GrammarCompiler(info, max_threads=1).compile_json_schema(json.dumps(schema))
    matcher = xgrammar.GrammarMatcher(compiled)
    accepted = [matcher.accept_token(i) for i in pair.tokenizer('{"city": "Zürich"}')["input_ids"]]
    assert all(accepted) and matcher.accept_token(pair.tokenizer.eos_token_id)
    assert not xgrammar.GrammarMatcher(compiled).accept_token(pair.tokenizer("[")["input_ids"][0])


def test_the_command_reuses_what_is_there(folder: Path) -> None:
    before = (folder / "demo.json").stat().st_mtime_ns
    done = CliRunner().invoke(app, ["demo-model", "--out", str(folder), "--size", "micro", "--threads", "1"])
    assert done.exit_code == 0 and "already holds this pair" in done.output
    assert (folder / "demo.json").stat().st_mtime_ns == before


def test_other_requests_and_damage_make_a_pair_stale(folder: Path, tmp_path: Path) -> None:
    manifest = building.read_manifest(folder)
    assert building.stale_reason(folder, manifest, MICRO) is None
    assert "head" in building.stale_reason(folder, manifest, Request(size="micro", threads=1, head="rnn"))
    assert "weights" in building.stale_reason(folder, manifest | {"weights_sha256": "0"}, MICRO)
    assert "missing" in building.stale_reason(tmp_path, manifest, MICRO)
    assert "recipe" in building.stale_reason(folder, manifest | {"recipe": "0"}, MICRO)


@pytest.mark.parametrize(
    "field, value", [("size", "huge"), ("head", "lstm"), ("gamma", 0), ("gamma", 99), ("seed", -1), ("threads", 0)]
)
def test_bad_requests_are_one_sentence(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"^{field} is .*{value}.*; it must") as caught:
        Request(**{field: value})
    assert "\n" not in str(caught.value)


def test_a_folder_of_something_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not a demo pair"):
        building.build(tmp_path, MICRO, ignore)
    with pytest.raises(InputError, match="not a demo pair"):
        building.build(tmp_path / "notes.txt", MICRO, ignore)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupted_build_leaves_the_old_pair_and_no_rest(folder: Path, tmp_path: Path) -> None:
    def interrupt_at(wanted: str) -> building.Report:
        def report(stage: str, *_: object) -> None:
            if stage == wanted:
                raise KeyboardInterrupt

        return report

    with pytest.raises(KeyboardInterrupt):
        building.build(tmp_path / "new", MICRO, interrupt_at("measure"))  # after target and draft were written
    assert list(tmp_path.iterdir()) == []
    before = weights_hash(folder)
    with pytest.raises(KeyboardInterrupt):
        building.build(folder, MICRO, interrupt_at("tokenizer"))
    assert weights_hash(folder) == before and [p.name for p in folder.parent.iterdir()] == ["pair"]


def test_equal_requests_give_equal_weights_and_replace_in_place(folder: Path) -> None:
    before = building.read_manifest(folder)
    again = building.build(folder, MICRO, ignore)
    same = ("weights_sha256", "tokenizer_sha256", "held_out_losses", "acceptance")
    assert {key: again[key] for key in same} == {key: before[key] for key in same}
    assert [p.name for p in folder.parent.iterdir()] == ["pair"]
