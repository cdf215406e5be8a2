# SPDX-License-Identifier: Apache-2.0
"""Pixels as a PNG file, without a library."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def png_bytes(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 4] as a PNG (RFC 2083): no filter, one chunk of data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = pixels.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")
