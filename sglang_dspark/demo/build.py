"""Make a demo pair: corpus, tokenizer, target, draft, measurements, manifest; built beside its folder, then renamed."""

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from sglang_dspark.demo import metrics, training
from sglang_dspark.demo.corpus import DOMAINS, Corpus, held_out_prompts, load_corpus
from sglang_dspark.demo.pair import MAX_POSITIONS, Pair, draft_config, save_draft, target_config, weights_hash
from sglang_dspark.demo.recipe import PROMPTS_PER_DOMAIN, SHARES, SIZES, Request, Size, identity
from sglang_dspark.demo.tokenizer import train_tokenizer
from sglang_dspark.errors import InputError

MANIFEST = "demo.json"
TEMPERATURES = (0.0, 1.0)
Report = Callable[[str, int, int, str], None]
"""Progress: stage name, units done, units in all, a short text."""


@dataclass
class _Clock:
    """Wall-clock seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


@contextlib.contextmanager
def _torch_settings(threads: int) -> Iterator[None]:
    """`threads` compute threads and deterministic kernels, so that equal runs give equal weights; restored after."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def read_manifest(folder: Path) -> dict[str, object] | None:
    """The manifest of a saved pair, or None where there is none; InputError where it cannot be read."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); remove {folder} or choose another folder") from None
    if not isinstance(manifest, dict):
        raise InputError(f"{path} is not a demo pair's manifest; remove {folder} or choose another folder")
    return manifest


def stale_reason(folder: Path, manifest: dict[str, object], request: Request) -> str | None:
    """Why the pair in `folder` cannot be reused for `request`; None where it can."""
    for key, wanted in identity(request).items():
        have = manifest.get(key)
        if have != wanted:
            if isinstance(have, dict) and isinstance(wanted, dict):
                changed = [k for k in wanted if have.get(k) != wanted[k]]
                return "; ".join(f"its {k} is {have.get(k)}, asked for is {wanted[k]}" for k in changed)
            return f"its {key} is {have}, this version's is {wanted}"
    files = ["target/tokenizer.json", "target/config.json", "draft/config.json"]
    for name in (*files, *(f"prompts/{domain}.jsonl" for domain in DOMAINS)):
        if not (folder / name).is_file():
            return f"its {name} is missing"
    try:
        same = weights_hash(folder) == manifest.get("weights_sha256")
    except Exception as error:  # any unreadable file means the same here: train again
        return f"its weights cannot be read ({error})"
    return None if same else "its weights do not match its manifest"


def _own_text(target: Qwen3ForCausalLM, streams: training.Streams, size: Size, seed: int) -> torch.Tensor:
    """Rows of a draft batch's width: corpus text, then the target's continuation, greedy in every second row."""
    prompt = size.draft.length + 1 - size.own_tokens
    generator = torch.Generator().manual_seed(seed)
    prompts = training.random_windows(streams, SHARES, size.own_rows, prompt, generator)
    greedy = torch.arange(size.own_rows) % 2 == 0
    return training.continuations(target, prompts, size.own_tokens, greedy, seed)


def _train(
    corpus: Corpus, request: Request, size: Size, report: Report, clock: _Clock
) -> tuple[Pair, dict[str, float]]:
    with clock.stage("tokenizer"):
        report("tokenizer", 0, 1, "")
        texts = [text for domain in DOMAINS for text in corpus.training[domain]]
        tokenizer = train_tokenizer(texts, size.vocab_size, MAX_POSITIONS)
        streams = training.token_streams(tokenizer, corpus.training)
        held_out = training.token_streams(tokenizer, corpus.held_out)
        report("tokenizer", 1, 1, f"{sum(map(len, streams.values())) / 1e6:.1f} M tokens")

    def batches(source: training.Streams, schedule: training.Schedule, offset: int) -> Iterator[torch.Tensor]:
        return training.batches(source, SHARES, schedule, 1000 * request.seed + offset)

    with clock.stage("target"):
        config = target_config(len(tokenizer), size.hidden, size.layers)
        target = training.train_target(
            config,
            batches(streams, size.target, 0),
            size.target,
            request.seed,
            lambda step, text: report("target", step, size.target.steps, text),
        )
    with clock.stage("own_text"):
        report("own text", 0, 1, "")
        own = _own_text(target, streams, size, request.seed)
        report("own text", 1, 1, f"{own.numel()} tokens")
    with clock.stage("draft"):
        config = draft_config(
            config,
            gamma=request.gamma,
            head=request.head,
            layers=size.draft_layers,
            rank=size.rank,
            anchors=size.anchors,
        )
        mixed = training.blended(batches(streams, size.draft, 1), own, request.seed)
        draft = training.train_draft(
            config,
            target,
            mixed,
            size.draft,
            request.seed,
            lambda step, text: report("draft", step, size.draft.steps, text),
        )
    with clock.stage("held_out_losses"):
        losses = training.held_out_losses(draft, target, batches(held_out, size.draft, 2), 8, request.seed)
    return Pair(tokenizer, target, draft), losses


def measure(
    pair: Pair, prompts: dict[str, list[str]], sample: metrics.Sample, seed: int, report: Report
) -> dict[str, object]:
    """Acceptance of `pair` at temperatures 0 and 1 on the first prompts of each domain: over all, and by domain."""
    total, done = len(TEMPERATURES) * len(prompts) * sample.prompts, 0
    result: dict[str, object] = {}
    for temperature in TEMPERATURES:
        rounds: dict[str, list[metrics.Round]] = {}
        for domain, texts in prompts.items():
            rounds[domain] = []
            chosen = texts[: sample.prompts]
            for part in metrics.run_prompts(pair, chosen, sample.new_tokens, temperature, seed):
                rounds[domain] += part
                done += 1
                report("measure", done, total, f"temperature {temperature:g}, {domain}")
        mixed = metrics.summarize([r for part in rounds.values() for r in part])
        lengths = {d: metrics.summarize(part)["accept_length"] if part else None for d, part in rounds.items()}
        result[f"T={temperature:g}"] = mixed | {"accept_length_by_domain": lengths}
    return result


def _write_prompts(folder: Path, prompts: dict[str, list[str]]) -> None:
    folder.mkdir()
    for domain, texts in prompts.items():
        lines = [json.dumps({"turns": [text]}) + "\n" for text in texts]
        (folder / f"{domain}.jsonl").write_text("".join(lines))


def _save_target(pair: Pair, folder: Path) -> None:
    pair.target.save_pretrained(folder)
    tokenizer: PreTrainedTokenizerFast = pair.tokenizer
    tokenizer.save_pretrained(folder)


def _build_into(folder: Path, request: Request, report: Report) -> dict[str, object]:
    size, clock, who = SIZES[request.size], _Clock(), identity(request)
    with clock.stage("corpus"):
        report("corpus", 0, 1, "")
        corpus = load_corpus(size.structured_documents, size.python_files)
        prompts = {domain: held_out_prompts(corpus, domain, PROMPTS_PER_DOMAIN) for domain in DOMAINS}
        report("corpus", 1, 1, f"{sum(map(len, corpus.training.values()))} documents")
    pair, losses = _train(corpus, request, size, report, clock)
    _save_target(pair, folder / "target")
    save_draft(pair.draft, folder / "draft")
    _write_prompts(folder / "prompts", prompts)
    with clock.stage("measure"):
        acceptance = measure(pair, prompts, size.sample, request.seed, report)
    trainable = sum(p.numel() for p in pair.draft.parameters() if p.requires_grad)
    manifest = who | {
        "weights_sha256": weights_hash(folder),
        "tokenizer_sha256": hashlib.sha256((folder / "target" / "tokenizer.json").read_bytes()).hexdigest(),
        "parameters": {"target": sum(p.numel() for p in pair.target.parameters()), "draft_trainable": trainable},
        "held_out_losses": losses,
        "acceptance": acceptance,
        "seconds": clock.seconds | {"total": round(sum(clock.seconds.values()), 1)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _move_into_place(built: Path, folder: Path) -> None:
    """Rename `built` to `folder`; a pair that was there goes only once the new one stands."""
    if not folder.exists():
        built.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent)) / "pair"
    folder.rename(old)
    built.rename(folder)
    shutil.rmtree(old.parent)


def build(folder: Path, request: Request, report: Report) -> dict[str, object]:
    """Train, measure and save the pair that `request` asks for as `folder`; returns its manifest.

    `folder` is either absent, empty, or a pair (which is replaced). Whatever interrupts this leaves `folder` as it was.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and read_manifest(folder) is None)):
        raise InputError(f"{folder} exists and is not a demo pair; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    scratch.chmod(0o755)  # mkdtemp makes it private, a pair is not
    try:
        with _torch_settings(request.threads):
            manifest = _build_into(scratch, request, report)
        _move_into_place(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest
