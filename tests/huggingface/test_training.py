# SPDX-License-Identifier: Apache-2.0
"""Training there, and back: Trainer, LoRA on attention and experts, save and load, and our kit again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcmoe.checkpoint import writing
from kcmoe.checkpoint.reading import open_checkpoint
from kcmoe.inference.predict import LanguageModel

pytestmark = pytest.mark.huggingface

TEXTS = ["재밌어요", "지루한 영화", "배우들 연기가 좋아요", "시간이 아깝다"]
LABELS = ["긍정적", "부정적", "긍정적", "부정적"]


def load(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True, **options)


def examples(folder: Path) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs, labels = tokenizer(TEXTS).input_ids, tokenizer(LABELS).input_ids
    return [{"input_ids": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]


def train(model: Any, folder: Path, output: Path, steps: int = 12) -> list[float]:
    """Losses of a few Trainer steps."""
    from transformers import (
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=0,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    trainer = Seq2SeqTrainer(model, arguments, collator, train_dataset=examples(folder))
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_tuned_there_saved_there_and_brought_back(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(kind)
    model = load(folder)
    losses = train(model, folder, tmp_path / "run")
    assert losses[-1] < 0.7 * losses[0]
    saved = tmp_path / "saved"
    model.save_pretrained(saved, max_shard_size="2MB")
    assert len(list(saved.glob("*.safetensors"))) > 1
    again = load(saved)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name

    back = writing.convert(saved, tmp_path / "back/checkpoint_7", "t5x_orbax")
    lm = LanguageModel.load(back)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = tokenizer.batch_decode(
            again.eval().generate(**inputs, max_new_tokens=8), skip_special_tokens=True
        )
    assert lm.generate(TEXTS, max_tokens=8) == theirs
    assert [one.label for one in lm.classify(TEXTS, task="nsmc")]  # our kit takes it on
    assert open_checkpoint(back).step == 7


def test_untuned_it_comes_back_bit_for_bit(
    sparse: Path, sparse_checkpoint: Path, tmp_path: Path
) -> None:
    load(sparse).save_pretrained(tmp_path / "saved")
    for source in (sparse, tmp_path / "saved"):
        before, after = open_checkpoint(sparse_checkpoint), open_checkpoint(source)
        assert before.tree() == after.tree()
        for path in before.tree():
            assert np.array_equal(before.read(path), after.read(path)), path


@pytest.mark.parametrize("targets", ["attention", "experts"])
def test_lora(sparse: Path, tmp_path: Path, targets: str) -> None:
    import torch

    peft = pytest.importorskip("peft", reason="pip install 'kcmoe[huggingface]'")
    where: dict[str, Any] = {"target_modules": ["q", "v"]}
    if targets == "experts":
        where = {
            "target_modules": [],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        }
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=16, **where)
    model = peft.get_peft_model(load(sparse), config)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all(("experts" in name) == (targets == "experts") for name in trained)
    losses = train(model, sparse, tmp_path / "run", steps=25)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    example = torch.tensor([examples(sparse)[0]["input_ids"]])
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=example, decoder_input_ids=example).logits
        merged = model.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        found = load(tmp_path / "merged").eval()(input_ids=example, decoder_input_ids=example)
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-4)
    assert not open_checkpoint(tmp_path / "merged").scan()[1]


def test_classifier(sparse: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    model = AutoModelForSequenceClassification.from_pretrained(
        sparse, trust_remote_code=True, id2label={0: "부정적", 1: "긍정적"}
    )
    tokenizer = AutoTokenizer.from_pretrained(sparse)
    encoder = load(sparse).encoder.state_dict()
    for name, value in model.transformer.encoder.state_dict().items():
        assert torch.equal(value, encoder[name]), name
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    labels = torch.tensor([1, 0, 1, 0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(15):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        alone = model(**inputs, labels=labels, output_router_logits=False).loss
        assert model(**inputs, labels=labels).loss > alone
    model.save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    classify = pipeline(
        "text-classification", model=str(tmp_path / "classifier"), trust_remote_code=True
    )
    assert [one["label"] for one in classify(TEXTS)] == LABELS
