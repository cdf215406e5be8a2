# SPDX-License-Identifier: Apache-2.0
"""`python -m kcmoe` is `kcmoe`."""

from kcmoe.cli import main

main()
