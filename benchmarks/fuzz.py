# SPDX-License-Identifier: Apache-2.0
"""Mutates every kind of input and looks at what the verbs make of it.

    python benchmarks/fuzz.py --rounds=1000 [--kind=gin --kind=tsv] [--seed=0]

A mutated input may be read, or refused with one line and status 2; nothing else: no traceback, no message
of several lines or of thousands of characters, no new or changed file beside the output, none at all after a
refusal, and no output of which a part has a temporary name.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from fuzz_cases import KINDS, Case

from kcmoe.io import durable

_SIGNS = "{}[]()'\"\\%@=:,.#\n\t \0\ufeff\r-+eE09a_/!;가\U0001f642|"
_MOST_SECONDS = 60


def _mutated(content: bytes, text: bool, rng: random.Random) -> bytes:
    if text and rng.random() < 0.7:
        signs = list(content.decode("utf-8", "surrogateescape"))
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(signs) + 1)
            kind = rng.randrange(4)
            if kind == 0:
                signs.insert(place, rng.choice(_SIGNS))
            elif kind == 1:
                signs[place : place + 1] = rng.choice(_SIGNS)
            elif kind == 2:
                del signs[place : place + rng.randrange(1, 9)]
            else:
                signs[place:place] = signs[place : place + rng.randrange(1, 30)] * rng.randrange(
                    1, 9
                )
        return "".join(signs).encode("utf-8", "surrogateescape")
    data = bytearray(content)
    place = rng.randrange(len(data)) if data else 0
    kind = rng.randrange(6)
    if kind == 0:
        del data[place:]
    elif kind == 1 and data:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[place : place + 16] = bytes(16)
    elif kind == 3:
        data[place:place] = rng.randbytes(rng.randrange(1, 30))
    elif kind == 4:
        data[:] = rng.choice(
            [b"", b"[" * 100_000, b"\xff\xfe", b"\0" * 99, b"{" * 5000, b"\n" * 50]
        )
    else:
        del data[place : place + rng.randrange(1, 99)]
    return bytes(data)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file and folder, with the content of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def restore(folder: Path, original: dict[str, bytes]) -> None:
    """Makes everything what `listing` saw."""
    now = listing(folder)
    for name in sorted(now.keys() - original.keys(), reverse=True):  # what is in a folder before it
        path = folder / name
        path.rmdir() if path.is_dir() else path.unlink()
    for name, content in sorted(original.items()):
        if name not in now and any(other.startswith(f"{name}/") for other in original):
            (folder / name).mkdir()
        elif now.get(name) != content:
            (folder / name).write_bytes(content)


def one(case: Case, rng: random.Random) -> str:
    """Runs one mutation and returns what is wrong with the outcome, "" if nothing is."""
    original = listing(case.folder)
    file = rng.choice(case.files)
    file.write_bytes(_mutated(file.read_bytes(), case.text, rng))
    before = {**original, str(file.relative_to(case.folder)): file.read_bytes()}
    said, printed = io.StringIO(), io.StringIO()
    started_s = time.process_time()  # whatever else the machine does
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            status = case.run()
        if status not in (0, 2):
            return f"status {status}: {said.getvalue()}"
        if fault := _left(case, before, status):
            return f"{fault} with status {status}"
        lines = [line for line in said.getvalue().splitlines() if line.startswith("kcmoe ")]
        if status == 2 and (len(lines) != 1 or len(lines[0]) > 4000):
            return f"status 2 with {len(lines)} lines: {said.getvalue()[-500:]}"
        seconds = time.process_time() - started_s
        return f"took {seconds:.0f} s" if seconds > _MOST_SECONDS else ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error)[-3:])
    finally:
        restore(case.folder, original)


def _left(case: Case, before: dict[str, bytes], status: int) -> str:
    """What a command changed that it may not change, "" if nothing."""
    after = listing(case.folder)
    changed = {name for name in after.keys() | before.keys() if after.get(name) != before.get(name)}
    if status == 0 and case.output is not None:
        below = str(case.output.relative_to(case.folder))
        if any(durable.TEMPORARY in name or name.endswith(".part") for name in changed):
            return f"half-written {sorted(changed)[:5]}"
        changed = {name for name in changed if not name.startswith(below)}
    return f"left or changed {sorted(changed)[:5]}" if changed else ""


def main() -> None:
    """Prints a line for every fault, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=1000, help="mutations of each kind")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    faults: Counter[str] = Counter()
    for kind in args.kind or sorted(KINDS):
        with tempfile.TemporaryDirectory() as folder:
            case = KINDS[kind](Path(folder))
            for number in range(args.rounds):
                fault = one(case, random.Random(f"{args.seed} {kind} {number}"))
                if fault:
                    faults[kind] += 1
                    print(f"{kind} {number}: {fault}")
        print(f"{kind}: {args.rounds} mutations, {faults[kind]} faults", flush=True)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
