# SPDX-License-Identifier: Apache-2.0
"""What `kcmoe data download` can fetch: official places, licences, checksums, and the parquet they become.

Pure data. Addresses name a commit, and checksums are the git blob ids of that commit's files, so what is
verified is what the authors published. Nothing here is a mirror of ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

_NSMC = "https://raw.githubusercontent.com/e9t/nsmc/cc0670e872d4ac27bfe36c87456783004b39ef6c/"
_KOR_NLU = (
    "https://raw.githubusercontent.com/kakaobrain/kor-nlu-datasets/"
    "0df0fe7d496eb61b092e022e238c2230b29f1cbc/"
)
_KLUE = (
    "https://raw.githubusercontent.com/KLUE-benchmark/KLUE/3efd98708a40ff49251fddde35453f8fbb11f536/"
    "klue_benchmark/klue-nli-v1.1/"
)
_BEEP = (
    "https://raw.githubusercontent.com/kocohub/korean-hate-speech/"
    "f8d05dce2b22007bb149e5139c0060c68ad8f94b/"
)


@dataclasses.dataclass(frozen=True)
class Remote:
    """One file to fetch.

    Attributes:
      url: the official address.
      git_blob: git's id of the file: sha1 of "blob <size>\\0" and the content.
      size: bytes, 0 where the authors do not say.
    """

    url: str
    git_blob: str
    size: int = 0

    @property
    def name(self) -> str:
        """File name, under which it is kept in `<set>/raw/`."""
        return self.url.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Table:
    """One parquet file made of fetched ones.

    Attributes:
      file: below DATA_DIR.
      sources: names of fetched files, read one after another.
      columns: column of the parquet -> column of the source.
      types: PyArrow type of columns that are not text.
    """

    file: str
    sources: tuple[str, ...]
    columns: Mapping[str, str]
    types: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One set that can be had.

    Attributes:
      name: as typed.
      about: one line.
      licence: of the data.
      homepage: where it is described.
      files: to fetch over HTTP.
      tables: made of them.
      bucket: a bucket folder to copy instead.
      by_hand: what a person has to do where a login stands between.
      present: file below DATA_DIR that shows it is there, where there is no table.
    """

    name: str
    about: str
    licence: str
    homepage: str
    files: tuple[Remote, ...] = ()
    tables: tuple[Table, ...] = ()
    bucket: str = ""
    by_hand: str = ""
    present: str = ""


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_NLI_COLUMNS = {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}
_STS_COLUMNS = _same("genre", "filename", "year", "id", "score", "sentence1", "sentence2")

_ALL = (
    DataSet(
        name="nsmc",
        about="sentiment of Naver movie reviews: 150,000 train, 50,000 test",
        licence="CC0 1.0",
        homepage="https://github.com/e9t/nsmc",
        files=(
            Remote(_NSMC + "ratings_train.txt", "ac0dba272895dc1d0b3dd5f11afbeaeb7abe7876"),
            Remote(
                _NSMC + "ratings_test.txt", "b6cfcd8cd1557bcd9bf06617b0e429ed73e9a367", 4_893_335
            ),
        ),
        tables=tuple(
            Table(
                f"nsmc/{split}.parquet",
                (f"ratings_{split}.txt",),
                _same("id", "document", "label"),
                {"label": "int64"},
            )
            for split in ("train", "test")
        ),
    ),
    DataSet(
        name="kornli",
        about="natural language inference: 942,854 train (machine-translated), 2,490 dev, 5,010 test",
        licence="CC BY-SA 4.0",
        homepage="https://github.com/kakaobrain/kor-nlu-datasets",
        files=(
            Remote(
                _KOR_NLU + "KorNLI/snli_1.0_train.ko.tsv",
                "c91761e52fca2a7420104589811346986ce94073",
            ),
            Remote(
                _KOR_NLU + "KorNLI/multinli.train.ko.tsv",
                "94d26a9d0dd045928148ef8691a256bd0e7d45c3",
            ),
            Remote(
                _KOR_NLU + "KorNLI/xnli.dev.ko.tsv",
                "21305150d466aa35d42b14e1890b7dcd58084634",
                511_383,
            ),
            Remote(
                _KOR_NLU + "KorNLI/xnli.test.ko.tsv",
                "89a0b11bffa775fafd88178b3980a1fe2d8aee52",
                1_032_430,
            ),
        ),
        tables=(
            Table(
                "kornli/train.parquet",
                ("snli_1.0_train.ko.tsv", "multinli.train.ko.tsv"),
                _NLI_COLUMNS,
            ),
            Table("kornli/validation.parquet", ("xnli.dev.ko.tsv",), _NLI_COLUMNS),
            Table("kornli/test.parquet", ("xnli.test.ko.tsv",), _NLI_COLUMNS),
        ),
    ),
    DataSet(
        name="korsts",
        about="semantic similarity: 5,749 train, 1,500 dev, 1,379 test",
        licence="CC BY-SA 4.0",
        homepage="https://github.com/kakaobrain/kor-nlu-datasets",
        files=(
            Remote(
                _KOR_NLU + "KorSTS/sts-train.tsv",
                "91fc16190dd0102a3cad2f0abf83317703438869",
                1_046_952,
            ),
            Remote(
                _KOR_NLU + "KorSTS/sts-dev.tsv", "3686d9394fa63bcfd6b1bc7c70a60b1dfe08d388", 307_276
            ),
            Remote(
                _KOR_NLU + "KorSTS/sts-test.tsv",
                "d2a7c958d520ed84402c0042142a60d9a18ee3e4",
                249_596,
            ),
        ),
        tables=tuple(
            Table(
                f"korsts/{split}.parquet", (f"sts-{name}.tsv",), _STS_COLUMNS, {"score": "float64"}
            )
            for split, name in (("train", "train"), ("validation", "dev"), ("test", "test"))
        ),
    ),
    DataSet(
        name="hate_speech",
        about="hate, offensive or neither, news comments (BEEP!): 7,896 train, 471 dev; test has no labels",
        licence="CC BY-SA 4.0",
        homepage="https://github.com/kocohub/korean-hate-speech",
        files=(
            Remote(
                _BEEP + "labeled/train.tsv", "a7663ec2ee2837b5e38a6c49ca47caee84eea894", 913_546
            ),
            Remote(_BEEP + "labeled/dev.tsv", "a2b083b74c72a4dab444ddc6b3e83fa269306b24", 54_903),
            Remote(_BEEP + "test.no_label.tsv", "14b36a4588fc5e9f9c0b6ebed842549b173345c4", 96_108),
        ),
        tables=(
            *(
                Table(
                    f"hate_speech/{split}.parquet",
                    (f"{name}.tsv",),
                    _same("comments", "contain_gender_bias", "bias", "hate"),
                    {"contain_gender_bias": "bool"},
                )
                for split, name in (("train", "train"), ("validation", "dev"))
            ),
            Table("hate_speech/test_unlabeled.parquet", ("test.no_label.tsv",), _same("comments")),
        ),
    ),
    DataSet(
        name="klue_nli",
        about="natural language inference written in Korean: 24,998 train, 3,000 dev; same labels as kornli",
        licence="CC BY-SA 4.0",
        homepage="https://github.com/KLUE-benchmark/KLUE",
        files=(
            Remote(_KLUE + "klue-nli-v1.1_train.json", "a7903d15f09a3663d8f1d78e68d8d6c10dbd8618"),
            Remote(
                _KLUE + "klue-nli-v1.1_dev.json",
                "db052b2459c68d1ec57dd1573bfe90a9bb3f8157",
                1_498_298,
            ),
        ),
        tables=tuple(
            Table(
                f"klue_nli/{split}.parquet",
                (f"klue-nli-v1.1_{name}.json",),
                {**_same("guid", "premise", "hypothesis"), "label": "gold_label"},
            )
            for split, name in (("train", "train"), ("validation", "dev"))
        ),
    ),
    DataSet(
        name="comments",
        about="Korean news comments of KcBERT v2022, about 10 billion tokens, for pretraining",
        licence="see its page",
        homepage="https://www.kaggle.com/datasets/junbumlee/kcbert-pretraining-corpus-korean-news-comments",
        by_hand=(
            "Kaggle asks for a login: sign in at its page (or `pip install kaggle`, put an API token into "
            "~/.kaggle/kaggle.json and run `kaggle datasets download -d "
            "junbumlee/kcbert-pretraining-corpus-korean-news-comments --unzip -p DIR`), then "
            "`kcmoe data prepare 'DIR/*' --output=DATA_DIR/comments`"
        ),
        present="comments/train-*.parquet",
    ),
    DataSet(
        name="checkpoint",
        about="the published ST-MoE base checkpoint and its vocabulary (32,118 pieces)",
        licence="see its page",
        homepage="https://github.com/Quasar-Kim/kc-moe",
        bucket="gs://kc-moe/checkpoint",
        present="checkpoint/**",
    ),
)

DATA_SETS: Mapping[str, DataSet] = {each.name: each for each in _ALL}
