"""Contact sheets: images side by side under their captions."""

import cv2
import numpy as np

from deepcv.images.codec import UInt8Array


def grid(images_nhwc: UInt8Array, captions: list[tuple[str, ...]], columns: int, tile_side: int = 96) -> UInt8Array:
    """Lay images out as an RGB contact sheet, each under its lines of caption (`images_nhwc` share one size)."""
    line_height, margin = 14, 6
    caption_height = line_height * max((len(lines) for lines in captions), default=0) + margin
    rows = max(1, -(-len(images_nhwc) // columns))  # no image: an empty sheet, which still is a picture
    sheet = np.full((rows * (tile_side + caption_height + margin), columns * (tile_side + margin), 3), 255, np.uint8)
    for position, (image, lines) in enumerate(zip(images_nhwc, captions, strict=True)):
        row, column = divmod(position, columns)
        top, left = row * (tile_side + caption_height + margin), column * (tile_side + margin)
        enlarged = cv2.resize(image, (tile_side, tile_side), interpolation=cv2.INTER_NEAREST)
        sheet[top : top + tile_side, left : left + tile_side] = enlarged.reshape(tile_side, tile_side, -1)
        for number, line in enumerate(lines, start=1):
            place = (left + 2, top + tile_side + number * line_height - 2)
            cv2.putText(sheet, line[:16], place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet
