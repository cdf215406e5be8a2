# SPDX-License-Identifier: Apache-2.0
"""The model card, `README.md`, in Korean and English: what is in the folder, and how it is used.

Says only what the checkpoint and its folder tell. Scores are those of the evaluation reports beside the
checkpoint, each with the command that makes it again.
"""

from __future__ import annotations

import json
import os
import string
from collections.abc import Iterator, Sequence
from pathlib import Path

from kcmoe.checkpoint import run_config
from kcmoe.checkpoint.base import Provenance
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError
from kcmoe.io import json_text, resources
from kcmoe.io.remote import is_remote
from kcmoe.tasks.registry import named_task
from kcmoe.vocabulary import Vocabulary

TEMPLATE = "huggingface/card.md"
REPORTS = "evaluation"  # folder beside checkpoints in which `kcmoe evaluate` leaves its reports
# Texts that tasks were learnt from: where they are described, and their licence.
_DATA = {
    "nsmc": ("https://github.com/e9t/nsmc", "CC0 1.0"),
    "kornli": ("https://github.com/kakaobrain/kor-nlu-datasets", "CC BY-SA 4.0"),
    "kornli_from_klue": ("https://github.com/KLUE-benchmark/KLUE", "CC BY-SA 4.0"),
    "korsts": ("https://github.com/kakaobrain/kor-nlu-datasets", "CC BY-SA 4.0"),
    "klue_sts": ("https://github.com/KLUE-benchmark/KLUE", "CC BY-SA 4.0"),
    "hate_speech": ("https://github.com/kocohub/korean-hate-speech", "CC BY-SA 4.0"),
    "hate_speech_binary": ("https://github.com/kocohub/korean-hate-speech", "CC BY-SA 4.0"),
    "apeach": ("https://github.com/jason9693/APEACH", "CC BY-SA 4.0"),
    "kmhas": ("https://github.com/adlnlp/K-MHaS", "CC BY-SA 4.0"),
    "curse": ("https://github.com/2runo/Curse-detection-data", "MIT"),
    "question_pair": ("https://github.com/songys/Question_pair", "MIT"),
    "three_i_four_k": ("https://github.com/warnikchow/3i4k", "CC BY-SA 4.0"),
}
_EXAMPLE_TEXTS = ("배우들 연기가 정말 좋아요", "시간이 아까운 영화였다")


def text(
    name: str, model: ModelConfig, vocabulary: Vocabulary, parameters: int, about: Provenance
) -> str:
    """The card of the folder `name` as Markdown; the words stand in `huggingface/card.md`."""
    tasks = _tasks(about)
    facts = {
        "name": name,
        "parameters": f"{parameters:,}",
        "encoder": model.num_encoder_layers,
        "decoder": model.num_decoder_layers,
        "width": model.embed_dim,
        "heads": model.num_heads,
        "mlp": model.mlp_dim,
        "pieces": f"{vocabulary.size:,}",
        "digest": vocabulary.digest[:16],
        "example": example(name, model.is_sparse, tasks),
    }
    rows = list(_scores(about))
    template = string.Template(resources.find(TEMPLATE).read_text("utf-8"))
    words = _sparse(model, parameters) | _training(about.step or 0, tasks)
    words |= _licence(vocabulary) | _score_tables(rows)
    return template.substitute(facts | words)


def _sparse(model: ModelConfig, parameters: int) -> dict[str, str]:
    if not model.is_sparse:
        return {"sparse_ko": "(T5 v1.1과 같은 구조)", "sparse_en": "(the architecture of T5 v1.1)"}
    layers = model.num_encoder_sparse_layers + model.num_decoder_sparse_layers
    idle = model.num_experts - model.num_selected_experts
    active = parameters - layers * idle * 3 * model.embed_dim * model.expert_mlp_dim
    experts, chosen = model.num_experts, model.num_selected_experts
    return {
        "sparse_ko": f"(희소 층 {layers}개에 전문가 {experts}개씩, 토큰마다 전문가 {chosen}개를 골라 "
        f"매개변수 {active:,}개를 사용)",
        "sparse_en": f"({layers} sparse layers of {experts} experts; a token takes {chosen} of them, "
        f"and so meets {active:,} parameters)",
    }


def _tasks(about: Provenance) -> list[str]:
    """Names of the tasks that the model has learnt, the run's own first."""
    learnt = about.macros.get(run_config.LEARNT) or ()
    own = about.macros.get("MIXTURE_OR_TASK_NAME")
    return list(dict.fromkeys(str(name) for name in (own, *learnt) if name))


def _training(step: int, tasks: Sequence[str]) -> dict[str, str]:
    """Lines on steps, where they are counted, and on tasks with the licences of their data."""
    sources = []
    for task in tasks:
        home, licence = _DATA.get(task, ("", ""))
        sources.append(f"`{task}` ([{licence}]({home}))" if home else f"`{task}`")
    korean = [f"- 학습: {step:,} 스텝\n"] if step else []
    english = [f"- Training: {step:,} steps\n"] if step else []
    if sources:
        korean.append(f"- 학습한 과제: {', '.join(sources)}\n")
        english.append(f"- Tasks learnt: {', '.join(sources)}\n")
    return {"training_ko": "".join(korean), "training_en": "".join(english)}


def _licence(vocabulary: Vocabulary) -> dict[str, str]:
    if vocabulary.digest != _shipped_digest():
        return {"vocabulary_ko": "", "vocabulary_en": "", "license": ""}
    return {
        "license": "license: cc-by-sa-4.0\n",  # of a part of the folder, and it asks for its like
        "vocabulary_ko": " 어휘는 CC BY-SA 4.0 말뭉치로 만들었고 같은 라이선스로 배포합니다.",
        "vocabulary_en": " The vocabulary was made from a CC BY-SA 4.0 corpus and is shared alike.",
    }


def _score_tables(rows: list[tuple[str, ...]]) -> dict[str, str]:
    if not rows:
        return {"scores_ko": "", "scores_en": ""}
    head = {
        "scores_ko": ("과제", "분할", "지표", "점수 (× 100)", "명령"),
        "scores_en": ("task", "split", "metric", "score (x 100)", "command"),
    }
    rule = ("---", "---", "---", "---:", "---")
    return {
        name: "\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in [words, rule, *rows])
        for name, words in head.items()
    }


def _shipped_digest() -> str:
    try:
        return Vocabulary().digest
    except UserError:
        return ""


def _scores(about: Provenance) -> Iterator[tuple[str, ...]]:
    """Rows of task, split, metric, value and command, from the reports beside the checkpoint."""
    if about.path is None or is_remote(about.path):
        return
    checkpoint = os.path.basename(about.path)
    folder = Path(about.path).parent / REPORTS
    for file in sorted(folder.glob(f"*-{checkpoint}.json")):
        try:
            report = json_text.parse(file.read_bytes())
            task, split = str(report["task"]), str(report["split"])
            command = (
                f"kcmoe evaluate --task={task} --split={split} "
                f"--gin.CHECKPOINT_PATH='\"{checkpoint}\"'"
            )
            for protocol, found in report["protocols"].items():
                for metric, estimate in found["metrics"].items():
                    value = 100 * estimate["value"]
                    error = 100 * (estimate["standard_error"] or 0.0)
                    cell = f"{value:.2f} ± {error:.2f}"
                    yield task, split, f"{metric} ({protocol})", cell, f"`{command}`"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # a file of another kind under such a name says nothing of this model


def example(name: str, sparse: bool, tasks: Sequence[str]) -> str:
    """Lines of Python that use the folder `name`; the card shows them."""
    trusted = ", trust_remote_code=True" if sparse else ""
    start = [
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        f'model = AutoModelForSeq2SeqLM.from_pretrained("{name}"{trusted})',
    ]
    answers = next(filter(None, map(_labels, tasks)), None)
    return "\n".join([*start, *(answers or _fill())])


def _labels(task: str) -> list[str]:
    """Lines that answer two examples of a task with one input; [] for other tasks."""
    try:
        found = named_task(task)
    except UserError:
        return []
    if len(found.input_columns) != 1 or not found.labels:
        return []
    texts = [found.inputs({found.input_columns[0]: one}) for one in _EXAMPLE_TEXTS]
    return [
        "texts = [",
        *(f"    {json.dumps(one, ensure_ascii=False)}," for one in texts),
        "]",
        'inputs = tokenizer(texts, padding=True, return_tensors="pt")',
        "print(tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True))",
    ]


def _fill() -> list[str]:
    """Lines that fill a gap. Text never becomes a sentinel, so its id is put between two texts."""
    return [
        'before, after = (tokenizer.encode(one, add_special_tokens=False) for one in ("오늘", "좋다"))',
        'gap = tokenizer.convert_tokens_to_ids("<extra_id_0>")',
        'inputs = tokenizer.pad({"input_ids": [[*before, gap, *after, tokenizer.eos_token_id]]}, '
        'return_tensors="pt")',
        "print(tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True))",
    ]
