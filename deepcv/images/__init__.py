"""Encoded image bytes to arrays: the one decoding and resizing that preparation, serving and evaluation share.

Images are numpy arrays `image_hwc`: uint8, height × width × channels, RGB (3 channels) or grey (1).
"""

from deepcv.images.codec import MAX_PIXELS, DecodeError, UInt8Array, check_header, decode, decode_checked, encode_png
from deepcv.images.recipe import Colour, Denoise, ImageRecipe, Resize, fit, prepare, prepare_crop, resized_crop
from deepcv.images.sheet import grid

__all__ = [
    "MAX_PIXELS",
    "Colour",
    "DecodeError",
    "Denoise",
    "ImageRecipe",
    "Resize",
    "UInt8Array",
    "check_header",
    "decode",
    "decode_checked",
    "encode_png",
    "fit",
    "grid",
    "prepare",
    "prepare_crop",
    "resized_crop",
]
