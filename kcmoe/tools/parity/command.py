# SPDX-License-Identifier: Apache-2.0
"""`kcmoe parity DIR…`: is this engine the same model as T5X + Flaxformer, and by how much?"""

from __future__ import annotations

from pathlib import Path

from kcmoe.config.arguments import Parser
from kcmoe.io import wording

EPILOG = """\
example:
  kcmoe parity tests/testdata/packed_top2

A case is a folder with case.json, params.npz, batches.npz, outputs.npz, trajectory.npz and the
final state as a T5X checkpoint. Errors are relative to the largest magnitude of the expected array.
Exit status 0 if every quantity is within its tolerance, 1 if one is not, 2 for a case that is not complete.
"""


def main(argv: list[str]) -> int:
    """Runs the verb; see the module docstring."""
    parser = Parser(
        prog="kcmoe parity",
        description="Compare this engine with numbers computed by T5X + Flaxformer.",
        epilog=EPILOG,
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folder of a reference case")
    parser.add_argument(
        "--dispatch",
        choices=("auto", "gather", "exchange", "einsum", "grouped", "ragged"),
        default="auto",
        help="how tokens travel to experts (default: what this device would choose)",
    )
    args = parser.parse_args(argv)

    import dataclasses

    import jax

    from kcmoe.tools.parity import case as case_lib
    from kcmoe.tools.parity import compare

    all_hold = True
    for folder in args.folders:
        case = case_lib.load(Path(folder))
        case = dataclasses.replace(
            case, model=dataclasses.replace(case.model, dispatch=args.dispatch)
        )
        with jax.default_matmul_precision("highest"):
            lines = compare.run(case)
        _print(case.name, lines)
        all_hold &= all(line.holds for line in lines)
    print("every quantity is within its tolerance" if all_hold else "NOT the same: see FAIL above")
    return 0 if all_hold else 1


def _print(name: str, lines: list) -> None:
    head = ["  quantity", "arrays", "largest error", "tolerance", ""]
    cells = [
        [
            f"  {line.quantity}",
            str(line.arrays),
            f"{line.error:.2e}",
            f"{line.tolerance:.0e}",
            "ok" if line.holds else f"FAIL at {line.worst}",
        ]
        for line in lines
    ]
    print("\n".join([name, *wording.aligned([head, *cells], "<>>><")]))
