"""Encodes PNGs of any bit depth and colour type without an image library."""

import struct
import zlib


def png(values, *, depth, color_type, palette=b''):
    """Encodes [H, W] or [H, W, channels] as a PNG."""
    height, width = values.shape[:2]
    rows = []
    for row in values.reshape(height, -1):
        bits = ''.join(f'{value:0{depth}b}' for value in row)
        bits += '0' * (-len(bits) % 8)
        rows.append(b'\0' + int(bits, 2).to_bytes(len(bits) // 8, 'big'))
    header = struct.pack('>IIBBBBB', width, height, depth, color_type, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'PLTE', palette), (b'IDAT', zlib.compress(b''.join(rows)))]
    encoded = b'\x89PNG\r\n\x1a\n'
    for kind, data in [chunk for chunk in chunks if chunk[1]] + [(b'IEND', b'')]:
        encoded += struct.pack('>I', len(data)) + kind + data
        encoded += struct.pack('>I', zlib.crc32(kind + data))
    return encoded
