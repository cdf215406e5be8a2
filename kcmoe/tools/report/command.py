# SPDX-License-Identifier: Apache-2.0
"""`kcmoe report`: one HTML file about a run or several, which opens anywhere without a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from kcmoe.config import arguments
from kcmoe.errors import UserError
from kcmoe.io.remote import is_remote

_EPILOG = """\
examples:
  kcmoe report runs/quickstart/reviews
  kcmoe report runs/a runs/b runs/c --output=compare.html --svg=pictures

Several runs are drawn over each other, and their settings are compared. A run that goes on can be looked at
at any time.
"""
MOST_RUNS = 8  # as many as there are colours that everybody can tell apart


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `kcmoe report --help`."""
    parser = arguments.Parser(
        prog="kcmoe report",
        description="Curves, router health and settings of runs as one HTML file.",
        epilog=_EPILOG,
    )
    parser.add_argument("folders", nargs="+", metavar="MODEL_DIR", help="of kcmoe train")
    arguments.add_output(
        parser,
        "--output",
        help="default: report.html in the first MODEL_DIR; here, where that is in a bucket",
        endings=(".html", ".htm"),
    )
    arguments.add_output_folder(
        parser, "--png", help="also write each picture there as PNG, by matplotlib"
    )
    arguments.add_output_folder(parser, "--svg", help="also write each picture there as SVG")
    parser.add_argument(
        "--peak_gflops",
        type=arguments.between(float, 1e-3, 1e12),
        metavar="N",
        help="matmul peak of the machine, for its share",
    )
    parser.add_argument(
        "--language", choices=("ko", "en"), default="ko", help="shown first, and in PNG and SVG"
    )
    args = parser.parse_args(list(argv))
    if len(args.folders) > MOST_RUNS:
        raise UserError(
            f"{len(args.folders)} runs are too many to tell apart; give at most {MOST_RUNS}"
        )

    from kcmoe.io import durable, outputs
    from kcmoe.io.drawing_svg import save
    from kcmoe.tools.report.page import page
    from kcmoe.tools.report.pictures import sections
    from kcmoe.tools.report.reading import read
    from kcmoe.training.places import InBucket

    buckets = [InBucket(each) if is_remote(each) else None for each in args.folders]
    folders = [
        Path(folder) if bucket is None else bucket.fetch_records()
        for folder, bucket in zip(args.folders, buckets, strict=True)
    ]
    runs = [read(*each) for each in zip(folders, _names(args.folders), args.folders, strict=True)]
    shown = sections(runs, args.peak_gflops * 1e9 if args.peak_gflops else None)
    where = Path() if is_remote(args.folders[0]) else runs[0].folder
    output = Path(args.output) if args.output else where / "report.html"
    if not args.output:  # beside its run, and made anew as that goes on
        outputs.check_file(output, overwrite=args.overwrite or not is_remote(args.folders[0]))
    pictures = [
        (dataclasses.replace(one.picture, title=getattr(one, args.language)), folder, ending)
        for folder, ending in ((args.png, "png"), (args.svg, "svg"))
        for section in shown
        for one in section.pictures
        if folder
    ]
    for picture, folder, ending in pictures:
        place = Path(folder) / f"{picture.name}.{ending}"
        outputs.check_file(place, overwrite=args.overwrite, endings=outputs.PICTURES)
    durable.write_file(output, page(runs, shown, args.language).encode())
    print(output)
    for picture, folder, ending in pictures:
        save(picture, Path(folder) / f"{picture.name}.{ending}")
    for folder in filter(None, (args.png, args.svg)):
        print(folder)
    return 0


def _names(folders: Sequence[str]) -> list[str]:
    """What to call each run: its folder's name, with more of the path where two are called alike."""
    paths = [
        Path(each if is_remote(each) or Path(each).is_dir() else Path(each).parent).absolute()
        for each in folders
    ]
    for parts in range(1, 20):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {path.name}" for number, path in enumerate(paths, 1)]
