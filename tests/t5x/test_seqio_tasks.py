# SPDX-License-Identifier: Apache-2.0
"""The tasks under SeqIO: the engine's ids, t5's span corruption over the same text, t5's metrics."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcmoe.config.data import DataConfig
from kcmoe.data import pipeline
from kcmoe.data.span_corruption import Noise
from kcmoe.errors import UserError
from kcmoe.tasks import registry as tasks
from kcmoe.vocabulary import Vocabulary

pytestmark = [pytest.mark.t5x, pytest.mark.filterwarnings("default")]

LENGTHS = {"inputs": 48, "targets": 6}
DATA = Path(__file__).parents[2] / "../shared/data"
LABELLED = ["sample_reviews", "sample_nli", "nsmc", "kornli", "korsts", "hate_speech"]
LABELLED += ["kornli_from_klue", "klue_sts", "kmhas", "apeach", "hate_speech_binary", "curse"]
LABELLED += ["three_i_four_k", "question_pair"]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary()


def converted(name: str, split: str, lengths: dict[str, int], **options: Any) -> Iterator[Any]:
    """Features as T5X gets them from SeqIO, one example at a time."""
    import seqio

    return seqio.get_dataset(
        mixture_or_task_name=name,
        task_feature_lengths=lengths,
        dataset_split=split,
        shuffle=options.pop("shuffle", False),
        feature_converter=seqio.EncDecFeatureConverter(pack=options.pop("pack", False)),
        **options,
    ).as_numpy_iterator()


def same_ids(name: str, split: str, vocabulary: Vocabulary, max_batches: int | None) -> int:
    """Compares every feature of every row with SeqIO's; returns the number of rows."""
    from kcmoe.t5x.tasks import register

    task = tasks.named_task(name)
    if not name.startswith("sample") and not DATA.is_dir():
        pytest.skip("the real data are not beside this repository")
    if not all((DATA / file).exists() for file in task.files.get(split, ())):
        pytest.skip(f"{task.files[split]} is not part of the real data")
    register(task, str(DATA))
    ours = pipeline.eval_batches(
        task,
        split,
        vocabulary,
        LENGTHS,
        500,
        DataConfig(data_dir=str(DATA)),
        max_batches=max_batches,
    )
    theirs = converted(name, split, LENGTHS)
    rows = 0
    for batch in ours:
        for row in range(min(500, ours.num_rows - rows)):
            example = next(theirs)
            assert batch.keys() == example.keys()
            for feature in batch:
                np.testing.assert_array_equal(batch[feature][row], example[feature], feature)
            rows += 1
    assert rows == ours.num_rows
    assert max_batches or next(theirs, None) is None, "SeqIO has more rows"
    cut = {row[-1] for batch in ours for row in batch["encoder_input_tokens"]} - {0}
    assert cut <= {vocabulary.eos_id}, "what is cut ends in EOS"
    return rows


@pytest.mark.parametrize("name", LABELLED)
def test_labelled_ids_are_those_of_the_engine(name: str, vocabulary: Vocabulary) -> None:
    assert same_ids(name, tasks.named_task(name).splits[-1], vocabulary, 4) > 90


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("name", LABELLED)
def test_all_labelled_ids(name: str, split: str, vocabulary: Vocabulary) -> None:
    if split not in tasks.named_task(name).splits:
        pytest.skip(f"{name} has no {split}")
    assert same_ids(name, split, vocabulary, None) > 90


def test_a_sentinel_in_a_comment_stays_text(tmp_path: Path, vocabulary: Vocabulary) -> None:
    from kcmoe.t5x.source import TextSource

    (tmp_path / "c.txt").write_text("안녕 <unused3> <extra_id_3>\n\n둘째\n", "utf-8")
    task = tasks.Task(
        name="typed", kind="span_corruption", files={"train": ("c.txt",)}, text_column="text"
    )
    rows = list(TextSource(task, str(tmp_path)).get_dataset("train", shuffle=False))
    ids = [row["targets"].numpy().tolist() for row in rows]
    assert ids == [vocabulary.encode("안녕 <unused3> <extra_id_3>") + vocabulary.encode("둘째")]
    assert max(map(max, ids)) < vocabulary.size - vocabulary.num_sentinels


@pytest.mark.parametrize(
    ("density", "span", "targets", "tokens"), [(0.15, 3.0, 32, 141), (0.25, 2.0, 55, 145)]
)
def test_span_corruption_has_the_statistics_of_the_engine(
    vocabulary: Vocabulary, density: float, span: float, targets: int, tokens: int
) -> None:
    from kcmoe.t5x.tasks import register

    task, count = tasks.named_task("sample_pretrain"), 96
    lengths, noise = {"inputs": 128, "targets": targets}, Noise(density, span)
    register(task, noise=noise)
    found = converted(task.name, "train", lengths, seed=1)
    theirs = [next(found) for _ in range(count)]
    data = DataConfig(noise_density=density, mean_noise_span_length=span)
    ours = pipeline.train_batches(task, vocabulary, lengths, count, 1, data).at(0)

    def facts(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        first = vocabulary.size - vocabulary.num_sentinels
        sentinels = (inputs >= first).sum(-1)
        tokens = (inputs > 0).sum(-1) + (targets > 0).sum(-1) - 2 * sentinels - 2
        noise = (targets > 0).sum(-1) - sentinels - 1
        assert np.array_equal(inputs[inputs >= first].max(), vocabulary.sentinel_id(0))
        return np.array([tokens.mean(), (noise / tokens).mean(), (noise / sentinels).mean()])

    stacked = [
        np.stack([row[k] for row in theirs])
        for k in ("encoder_input_tokens", "decoder_target_tokens")
    ]
    t5 = facts(*stacked)
    segment, *found_noise = facts(ours["encoder_input_tokens"], ours["decoder_target_tokens"])
    np.testing.assert_allclose(found_noise, t5[1:], rtol=0.02)
    np.testing.assert_allclose(found_noise, [density, span], rtol=0.02)
    # Only the end of a file is a shorter segment.
    assert 0.99 * segment < t5[0] <= segment == tokens


@pytest.fixture
def five(tmp_path: Path) -> Any:
    """Source of five files of seven texts."""
    from kcmoe.t5x.source import TextSource

    for file in range(5):
        (tmp_path / f"{file}.txt").write_text("".join(f"문장 {file} {line}\n" for line in range(7)))
    task = tasks.Task(
        name="five", kind="span_corruption", files={"train": ("*.txt",)}, text_column="text"
    )
    return TextSource(task, str(tmp_path))


def texts(source: Any, vocabulary: Vocabulary, **options: Any) -> list[str]:
    rows = source.get_dataset("train", **options)
    joined = " ".join(vocabulary.decode(row["targets"].numpy().tolist()) for row in rows)
    return [f"문장{text}".strip() for text in joined.split("문장")[1:]]


@pytest.mark.parametrize("hosts", [1, 2, 5, 10, 15])
def test_hosts_share_all_rows_and_have_equally_many(
    hosts: int, five: Any, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there are more hosts than files; and a host tokenizes nothing but its own."""
    import seqio

    assert five.supports_arbitrary_sharding
    tokenized: list[str] = []
    encode = Vocabulary.encode_batch

    def counting(self: Vocabulary, batch: Any, threads: int = 1) -> Any:
        tokenized.extend(batch)
        return encode(self, batch, threads)

    monkeypatch.setattr(Vocabulary, "encode_batch", counting)
    whole = texts(five, vocabulary, shuffle=False)
    assert len(set(whole)) == 35
    tokenized.clear()
    shares = [
        texts(five, vocabulary, shuffle=True, seed=1, shard_info=seqio.ShardInfo(host, hosts))
        for host in range(hosts)
    ]
    assert sorted(itertools.chain.from_iterable(shares)) == sorted(whole)
    assert len(tokenized) == 35
    if hosts != 2:  # 35 rows of 5 files over 2 hosts: 5 x 4 and 5 x 3
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_files_are_dealt_whole_where_they_can_be() -> None:
    from kcmoe.t5x.source import RowShare, part_of

    files = [f"{i}" for i in range(20)]
    assert part_of(files, 3, 10) == (["3", "13"], RowShare(0, 1))
    assert part_of(files, 23, 40) == (["3"], RowShare(1, 2))
    assert part_of(files, 6, 16) == (["2", "6", "10", "14", "18"], RowShare(1, 4))


def test_a_shuffled_order_repeats_with_its_seed(five: Any, vocabulary: Vocabulary) -> None:
    whole = texts(five, vocabulary, shuffle=False)
    shuffled = texts(five, vocabulary, shuffle=True, seed=1)
    assert shuffled != whole
    assert sorted(shuffled) == sorted(whole)
    assert shuffled == texts(five, vocabulary, shuffle=True, seed=1)


def test_labelled_rows_are_shared_out_too() -> None:
    import seqio

    from kcmoe.t5x.source import TextSource

    source = TextSource(tasks.named_task("sample_reviews"), str(DATA))

    def prompts(**options: Any) -> list[bytes]:
        rows = source.get_dataset("train", shuffle=False, **options)
        return [row["inputs_pretokenized"].numpy() for row in rows]

    whole = prompts()
    shares = [prompts(shard_info=seqio.ShardInfo(host, 3)) for host in range(3)]
    assert [row for rows in zip(*shares, strict=False) for row in rows] == whole[
        : 3 * len(shares[2])
    ]
    assert sum(map(len, shares)) == len(whole)


@pytest.mark.parametrize(
    ("name", "right", "wrong", "scores"),
    [
        ("sample_reviews", ["긍정적", "부정적"], ["긍정적", "글쎄"], {"accuracy": 50.0}),
        (
            "hate_speech",
            ["혐오", "문제없음"],
            ["혐오", "혐오"],
            {"accuracy": 50.0, "mean_3class_f1": 22.2},
        ),
        (
            "korsts",
            ["0.0", "2.0", "4.0"],
            ["0.4", "2.2", "5.0"],
            {"spearman_corrcoef": 100.0, "pearson_corrcoef": 99.2},
        ),
        (
            "kmhas",  # 2 hits, 1 miss and 1 false alarm; two of nine labels are found, each always
            ["정치, 욕설", "나이", "문제없음"],
            ["정치", "나이, 성별", "글쎄, 문제없음"],
            {"micro_f1": 57.1, "macro_f1": 22.2},
        ),
    ],
)
def test_metrics_are_those_of_t5(
    name: str, right: list[str], wrong: list[str], scores: dict[str, float]
) -> None:
    import seqio

    from kcmoe.t5x.tasks import register

    task = seqio.get_mixture_or_task(register(tasks.named_task(name), str(DATA)))
    targets, answers = (
        [task.postprocess_fn(word, example={}, is_target=False) for word in words]
        for words in (right, wrong)
    )
    found: dict[str, float] = {}
    for metric in task.metric_fns:
        found |= metric(targets, answers)
    assert found == pytest.approx(scores, abs=0.1)


def test_a_mixture_draws_from_each_part(vocabulary: Vocabulary) -> None:
    import seqio

    from kcmoe.t5x.tasks import register

    parts = [tasks.named_task(name) for name in ("sample_reviews", "sample_nli")]
    mixture = tasks.Mixture("both", ((parts[0], 3.0), (parts[1], 1.0)))
    assert register(mixture) == "both"
    assert register(mixture) == "both", "again, after the first"
    found = seqio.get_mixture_or_task("both")
    assert {task.name for task in found.tasks} == {"sample_reviews", "sample_nli"}
    rows = found.get_dataset(LENGTHS, split="train", seed=0, num_epochs=1)
    texts = [vocabulary.decode(row["inputs"].numpy()) for row in rows.take(200)]
    assert 0.6 < np.mean(["리뷰:" in text for text in texts]) < 0.9


def test_labels_that_the_vocabulary_does_not_give_back_are_refused() -> None:
    from kcmoe.t5x.tasks import register

    own = dataclasses.replace(
        tasks.named_task("nsmc"), name="own", labels={"0": " 부정", "1": "긍정"}
    )
    with pytest.raises(UserError, match="comes back from the vocabulary as '부정'"):
        register(own)
    with pytest.raises(UserError, match="are cut to 2"):
        register(tasks.named_task("three_i_four_k"), targets=2)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    from kcmoe.t5x.source import TextSource

    task = dataclasses.replace(tasks.named_task("nsmc"), name="absent")
    with pytest.raises(UserError, match=r"no file matches .*nsmc/test\.parquet"):
        TextSource(task, str(tmp_path)).list_shards("test")
