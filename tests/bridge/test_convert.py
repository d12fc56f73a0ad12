"""Shimmed: nano3's own import and export scripts, and its evaluation, with a tiny Llama made here.

Nemotron's own architecture needs mamba-ssm, which is for GPUs only; what is around it is the same.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.bridge.conftest import VOCABULARY, make_project
from tests.e2e.conftest import Project

MAKE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=16,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256)
config = LlamaConfig(vocab_size=int(sys.argv[2]), bos_token_id=0, eos_token_id=0, **shape)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[1])
"""
QUESTIONS = 8


@pytest.fixture(scope="module")
def llama(bridge_python: str, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with random weights."""
    folder = tmp_path_factory.mktemp("llama") / "hf"
    subprocess.run([bridge_python, "-c", MAKE, str(folder), str(VOCABULARY)], check=True)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def project(bridge_python: str, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("convert")
    rows = [{"question": f"Is {number} even?", "answer": number % 2} for number in range(QUESTIONS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "parity",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(folder / "rows.jsonl")},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": [" yes", " no"],
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "parity.yaml").write_text(yaml.safe_dump(task))
    model = {"hf_model": str(llama), "trust_remote_code": False}
    configs = {
        "import": {**model, "checkpoints": "${node:checkpoints}"},
        "export": {**model, "model_path": "${art:model,path}", "output": "${node:output}"},
        "eval": {
            "model_path": "${art:model,path}",
            "output": "${node:output}",
            "backend": "hf",
            "model_args": {"dtype": "float32"},
            "tasks": [str(folder / "parity.yaml")],
            "batch_size": 4,
        },
    }
    return make_project(folder / "project", bridge_python, configs)


def launched(project: Project, stage: str, config: str, *words: str) -> dict[str, object]:
    done = project.run("launch", "nano3", stage, "-c", f"{config}.yaml", *words, "--json")
    (outcome,) = json.loads(done.stdout)
    assert outcome["status"] == "made"
    return dict(outcome)


def test_shimmed_import_and_export_give_the_same_weights_which_the_harness_scores(
    project: Project, llama: Path
) -> None:
    from safetensors.torch import load_file

    base = launched(project, "model/import", "import", "--cloud", "shimmed")
    assert base["output"] == "art://nano3-base-model:v1"
    made = launched(
        project, "model/export", "export", "run.model=art://nano3-base-model", "--cloud", "shimmed"
    )
    assert made["output"] == "art://nano3-sft-hf:v1"
    (exported,) = (project.root / ".nemo-sky/artifacts/artifacts/nano3-sft-hf").rglob("*.safetensors")
    before, after = load_file(llama / "model.safetensors"), load_file(exported)
    assert set(before) == set(after)
    for name, weights in before.items():
        assert weights.equal(after[name]), name

    report = launched(project, "eval", "eval", "run.model=art://nano3-sft-hf", "--cloud", "bridge")
    assert report["output"] == "art://nano3-eval-report:v1"
    metadata = report["metadata"]
    assert isinstance(metadata, dict)
    assert set(metadata["scores"]) == {"parity/acc"}
    assert metadata["samples"] == QUESTIONS
    lineage = json.loads(project.run("lineage", "show", "art://nano3-eval-report", "--json").stdout)
    (hugging,) = lineage["children"]
    (megatron,) = hugging["children"]
    assert [hugging["uri"], megatron["uri"]] == [made["output"], base["output"]]
