import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Notebooks, shortened; `pytest notebooks` alone runs them as they are.
os.environ |= {"NOTEBOOK_ROUNDS": "1", "NOTEBOOK_TRIALS": "2", "NOTEBOOK_BACKEND": "in_process"}

import copy
import gc
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from selection import (  # noqa: F401  # pytest finds its hooks here
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_runtest_makereport,
    pytest_runtestloop,
    pytest_sessionfinish,
)

from raffm_ray.data.encoding import Words
from raffm_ray.models.architecture import FAMILIES, Architecture, architecture_of, new_model
from raffm_ray.models.model_config import parse_config
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import parse

# Ignored where a shell starts this in the background, and so by all that it starts: tests interrupt some of them.
signal.signal(signal.SIGINT, signal.default_int_handler)

_VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "num_labels": 10,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_TEXT = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "num_labels": 10,
    "pad_token_id": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_DECODER = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "num_labels": 10,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_T5 = {
    "model_type": "t5",
    "vocab_size": 50,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "dropout_rate": 0.0,
    "pad_token_id": 1,
    "eos_token_id": 3,
    "decoder_start_token_id": 1,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
TINY: dict[str, dict[str, Any]] = {
    "vit": {"model_type": "vit", **_VISION},
    "deit": {"model_type": "deit", **_VISION},
    "bert": {"model_type": "bert", **_TEXT},
    "roberta": {"model_type": "roberta", **_TEXT},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 50,
        "dim": 24,
        "n_layers": 3,
        "n_heads": 3,
        "hidden_dim": 40,
        "max_position_embeddings": 20,
        "num_labels": 10,
        "pad_token_id": 1,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
        "qa_dropout": 0.0,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 50,
        "n_embd": 24,
        "n_layer": 3,
        "n_head": 3,
        "n_inner": 40,
        "n_positions": 20,
        "num_labels": 10,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": {"model_type": "llama", **_DECODER, "head_dim": 8, "attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2", **_DECODER, "tie_word_embeddings": True, "hidden_size": 32},
    "qwen3": {"model_type": "qwen3", **_DECODER, "head_dim": 8, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", **_DECODER, "head_dim": 8, "sliding_window": 5},
    "t5": _T5,
    "t5_gated": {
        **_T5,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "num_decoder_layers": 2,
        "initializer_factor": 0.1,
    },
}
"""Small random configurations by name, at least one of every family; the contract tests loop over them."""


def tiny_experiment(**changes: Any) -> Experiment:
    """A run of seconds: digits, ten clients, five device types. RAFFM_TEST_STACK=1 trains every client alone, in all tests that say nothing else."""
    config = {key: value for key, value in TINY["vit"].items() if key != "num_labels"}
    values: dict[str, Any] = {
        "name": "tiny",
        "rounds": 2,
        "model": {"config": config, "pretrain": {"epochs": 3}},
        "clients": {"count": 12, "per_round": 5},
        "fleet": {
            "mix": "medium",
            "shares": {"raspberry_pi_4": 0.2, "v100": 0.3},
            "budgets": {
                "raspberry_pi_4": {"params": 0.4},
                "raspberry_pi_5": {"params": 0.5},
                "laptop": {"params": 0.65},
                "jetson_agx_orin": {"params": 0.8},
                "v100": {"params": 1.0},
            },
        },
        "extraction": {"steps": {"heads": 1, "qk": 2, "vo": 2, "ffn": 4, "residual": 4}, "floors": {"residual": 0.5}},
        "salience": {"every": 1, "clients": 2},
        "pool": {"backend": "in_process"},
    }
    if stack := os.environ.get("RAFFM_TEST_STACK"):
        values["pool"]["stack_clients"] = int(stack)
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return parse(values)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["RAFFM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> None:
    """What is there before a file's tests, above all libraries, is not looked through each time that a run collects garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
@pytest.hookimpl(trylast=True)  # after the fixtures of a module, some of which are pools
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ray ends after the last file that needs it: idle, it takes a twelfth of a core."""
    last = _last_on_ray(item.session)
    if last and item.path == last.path and (nextitem is None or nextitem.path != item.path):
        ray.shutdown()


@cache
def _last_on_ray(session: pytest.Session) -> pytest.Item | None:
    return next((item for item in reversed(session.items) if "four_cores" in getattr(item, "fixturenames", ())), None)


DRAWN = ("reports", "test_phases.py", "test_study.py", "test_units.py")
"""Folders and files whose tests look at pictures. In all others, and without the mark `drawn`, a figure is built but not painted."""


@pytest.fixture(autouse=True)
def _unpainted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Painting a report's figures takes longer than most runs of these tests."""
    if not set(DRAWN) & {request.path.name, request.path.parent.name} and "drawn" not in request.keywords:
        monkeypatch.setattr("raffm_ray.reports.drawing.paint", _blank)


def _blank(figure: Any, path: Path | str) -> None:
    from raffm_ray.reports.drawing import DOTS_PER_INCH

    width, height = (round(inches * DOTS_PER_INCH) for inches in figure.get_size_inches())
    Image.new("RGB", (width, height), "white").save(path)


@pytest.fixture(scope="session")
def four_cores() -> Iterator[None]:
    """A local Ray with four logical cores and two logical GPUs, for every test that needs workers."""
    often = {"metrics_report_interval_ms": 500}  # the default of ten seconds is long for a test
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _system_config=often,
    )
    yield
    ray.shutdown()


def small_tokenizer(words: Sequence[str]) -> Any:
    """A tokenizer of whole words with BERT's frame: [CLS] text [SEP] pair [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate([*special, *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def words() -> Words:
    from text_data import WORDS

    return Words(small_tokenizer(WORDS), 0, 32)


TOKENS, TARGETS = 12, 7
CASES = [(name, head) for name, settings in TINY.items() for head in FAMILIES[settings["model_type"]].heads]


@cache
def architecture_case(name: str, head: str) -> Architecture:
    settings = {key: value for key, value in TINY[name].items() if head != "question_answering" or key != "num_labels"}
    return architecture_of(parse_config(settings), head, TOKENS, TARGETS)


@pytest.fixture(params=CASES, ids="-".join)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return architecture_case(*request.param)


@pytest.fixture
def model(architecture: Architecture) -> torch.nn.Module:
    """A full model whose weights are all away from their initial zeros and ones."""
    return copy.deepcopy(_random_model(architecture))


@cache
def _random_model(architecture: Architecture) -> torch.nn.Module:
    full = new_model(architecture, 1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in full.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return full


@pytest.fixture
def inputs(architecture: Architecture) -> dict[str, torch.Tensor]:
    """Six examples; texts are of unequal length and padded."""
    generator = torch.Generator().manual_seed(3)
    if architecture.head == "image_classification":
        return {"pixel_values": torch.randn(6, 1, 8, 8, generator=generator)}

    def text(lengths: list[int], prefix: str = "") -> dict[str, torch.Tensor]:
        longest = max(lengths)
        mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
        words = torch.randint(2, 50, (len(lengths), longest), generator=generator)
        return {f"{prefix}input_ids": torch.where(mask.bool(), words, 1), f"{prefix}attention_mask": mask}

    source = text([TOKENS, 5, 9, 2, 7, TOKENS])
    if architecture.head == "sequence_to_sequence":
        source |= text([3, TARGETS, 1, 6, TARGETS, 4], "decoder_")
    return source


def outputs(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a model says of each example, [examples, numbers]: class logits, or those of words or of start and end at real tokens."""
    result = model(**inputs)
    if hasattr(result, "logits") and result.logits.ndim == 2:
        return result.logits
    real = inputs.get("decoder_attention_mask", inputs.get("attention_mask")).bool()
    if hasattr(result, "logits"):
        return torch.where(real[..., None], result.logits, 0.0).flatten(1)
    spans = [torch.where(real, logits, 0.0) for logits in (result.start_logits, result.end_logits)]
    return torch.cat(spans, dim=1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says how many hostile configurations and files were tried, where all were to be."""
    from hostile import FULL, TRIED

    for kind, count in sorted(TRIED.items()) if FULL else ():
        terminalreporter.write_line(f"tried: {count:,} {kind}")
