# SPDX-License-Identifier: Apache-2.0
"""What `kcmoe data download` can fetch: official places, licences, checksums, and the parquet they become.

Pure data. Addresses name a commit, and checksums are the git blob ids of that commit's files, so what is
verified is what the authors published. Nothing here is a mirror of ours.
"""

from __future__ import annotations

from collections.abc import Mapping

from kcmoe.corpus.types import DataSet, Layout, Remote, Table

_NSMC = "https://raw.githubusercontent.com/e9t/nsmc/cc0670e872d4ac27bfe36c87456783004b39ef6c/"
_KOR_NLU = (
    "https://raw.githubusercontent.com/kakaobrain/kor-nlu-datasets/"
    "0df0fe7d496eb61b092e022e238c2230b29f1cbc/"
)
_KLUE = (
    "https://raw.githubusercontent.com/KLUE-benchmark/KLUE/3efd98708a40ff49251fddde35453f8fbb11f536/"
    "klue_benchmark/"
)
_BEEP = (
    "https://raw.githubusercontent.com/kocohub/korean-hate-speech/"
    "f8d05dce2b22007bb149e5139c0060c68ad8f94b/"
)
_KMHAS = (
    "https://raw.githubusercontent.com/adlnlp/K-MHaS/ec7a7e775d650b825872f6f538fc717822cdfc1a/data/"
)
_CURSE = (
    "https://raw.githubusercontent.com/2runo/Curse-detection-data/"
    "ff241621e103b6f220d30de324d0d07987887308/"
)
_APEACH = (
    "https://raw.githubusercontent.com/jason9693/APEACH/a904c0826f53b90b92ef388562dbb02b03bc9e8e/"
    "APEACH/"
)
_QUESTION_PAIR = (
    "https://raw.githubusercontent.com/songys/Question_pair/"
    "e84b6f0e784c10c6a22cbbc7b1e415b901baa877/"
)
_3I4K = (
    "https://raw.githubusercontent.com/warnikchow/3i4k/cfa90c15f808becafca2d8ef8649b8b71f6bbe71/"
    "data/train_val_test/"
)


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
            Remote(
                _KLUE + "klue-nli-v1.1/klue-nli-v1.1_train.json",
                "a7903d15f09a3663d8f1d78e68d8d6c10dbd8618",
            ),
            Remote(
                _KLUE + "klue-nli-v1.1/klue-nli-v1.1_dev.json",
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
        name="klue_sts",
        about="semantic similarity written in Korean: 11,668 train, 519 dev",
        licence="CC BY-SA 4.0",
        homepage="https://github.com/KLUE-benchmark/KLUE",
        files=(
            Remote(
                _KLUE + "klue-sts-v1.1/klue-sts-v1.1_train.json",
                "4e92fce70fe9f2dbed2ffcb9c2aec7417c6d32ff",
            ),
            Remote(
                _KLUE + "klue-sts-v1.1/klue-sts-v1.1_dev.json",
                "2645707503e7b25cc3d9f94103cbfb2f5a086f56",
                454_638,
            ),
        ),
        tables=tuple(
            Table(
                f"klue_sts/{split}.parquet",
                (f"klue-sts-v1.1_{name}.json",),
                {
                    **_same("guid", "source", "sentence1", "sentence2"),
                    "label": "labels.label",
                    "real_label": "labels.real-label",
                    "binary_label": "labels.binary-label",
                },
                {"label": "float64", "real_label": "float64", "binary_label": "int64"},
            )
            for split, name in (("train", "train"), ("validation", "dev"))
        ),
    ),
    DataSet(
        name="kmhas",
        about="kinds of hate in news comments, several to a row: 78,977 train, 8,776 dev, 21,939 test",
        licence="CC BY-SA 4.0",
        homepage="https://github.com/adlnlp/K-MHaS",
        files=(
            Remote(_KMHAS + "kmhas_train.txt", "c8c6bb48890422dae0fabedb9b3a0bf07e681172"),
            Remote(_KMHAS + "kmhas_valid.txt", "c454c5c2547e4bf25ae330f2e1d234ccadf63485", 748_899),
            Remote(
                _KMHAS + "kmhas_test.txt", "547fb47f7b721309c4cc189bfe64d0a7667bd909", 1_902_352
            ),
        ),
        tables=tuple(
            Table(
                f"kmhas/{split}.parquet",
                (f"kmhas_{name}.txt",),
                {"text": "document", "labels": "label"},
                {"labels": "labels"},
                Layout("\t", quoted=True),
            )
            for split, name in (("train", "train"), ("validation", "valid"), ("test", "test"))
        ),
    ),
    DataSet(
        name="apeach",
        about="hate speech or not, written for the purpose: 3,770 test; train on hate_speech_binary",
        licence="CC BY-SA 4.0",
        homepage="https://github.com/jason9693/APEACH",
        files=(Remote(_APEACH + "test.csv", "0f264835126dc3c341c05444828ac62af49816ed", 659_054),),
        tables=(
            Table(
                "apeach/test.parquet",
                ("test.csv",),
                {"text": "text", "label": "class", "topic": "text_topic_eng"},
            ),
        ),
    ),
    DataSet(
        name="curse",
        about="abuse in comments of communities: 5,825 in one file, of which 17 % become validation",
        licence="MIT",
        homepage="https://github.com/2runo/Curse-detection-data",
        files=(
            Remote(_CURSE + "dataset.txt", "c3ef8069161913ec97dfc75d65cff62172201144", 514_417),
        ),
        tables=tuple(
            Table(
                f"curse/{split}.parquet",
                ("dataset.txt",),
                _same("text", "label"),
                {"label": "int64"},
                Layout("|", ("text", "label"), text_first=True),
                validation_share=0.17,
            )
            for split in ("train", "validation")
        ),
    ),
    DataSet(
        name="three_i_four_k",
        about="intention of utterances, seven kinds (3i4K): 55,134 train, 6,121 test",
        licence="CC BY-SA 4.0",
        homepage="https://github.com/warnikchow/3i4k",
        files=(
            Remote(
                _3I4K + "fci_train_val.txt", "3d0453e8bbddf517844e1db4faad56f487800fdf", 2_661_060
            ),
            Remote(_3I4K + "fci_test.txt", "3760dce83f1fa5a64b9baceba1d4381075888543", 295_054),
        ),
        tables=tuple(
            Table(
                f"three_i_four_k/{split}.parquet",
                (f"fci_{name}.txt",),
                _same("text", "label"),
                {"label": "int64"},
                Layout("\t", ("label", "text")),
            )
            for split, name in (("train", "train_val"), ("test", "test"))
        ),
    ),
    DataSet(
        name="question_pair",
        about="whether two questions ask the same: 6,136 train, 682 validation, 758 test",
        licence="MIT",
        homepage="https://github.com/songys/Question_pair",
        files=(
            Remote(
                _QUESTION_PAIR + "train.txt", "13029db0f61003a710d197dd8b2f8093d7ece75f", 441_758
            ),
            Remote(
                _QUESTION_PAIR + "validation.txt",
                "631cc37063a384d4deb81ff4ea9433440a74e144",
                49_083,
            ),
            Remote(_QUESTION_PAIR + "test.txt", "b3fb1b47f5326eac4c3a3c01927973e187ce1a0e", 54_395),
        ),
        tables=tuple(
            Table(
                f"question_pair/{split}.parquet",
                (f"{split}.txt",),
                _same("question1", "question2", "is_duplicate"),
                {"is_duplicate": "int64"},
            )
            for split in ("train", "validation", "test")
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
