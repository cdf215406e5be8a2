# SPDX-License-Identifier: Apache-2.0
"""Digests against values known from elsewhere."""

from __future__ import annotations

from pathlib import Path

from kcmoe.io import hashing

# FIPS 180-2, appendix B.1; RFC 1321, appendix A.5.
SHA256_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
MD5_ABC = "900150983cd24fb0d6963f7d28e17f72"


def test_digests_of_bytes_and_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert hashing.sha256(b"abc") == hashing.file_digest(tmp_path / "file") == SHA256_ABC
    assert hashing.file_digest(tmp_path / "file", "md5") == MD5_ABC


def test_facts_are_the_same_in_any_order() -> None:
    assert hashing.facts_digest({"a": 1, "b": [2]}) == hashing.facts_digest({"b": [2], "a": 1})
    assert hashing.facts_digest({"a": 1}) != hashing.facts_digest({"a": 2})
    assert hashing.facts_digest({"a": 1}) == hashing.sha256(b'{"a": 1}')
