"""The output folder of predictions.

panoptic/NAME.png   segment ids, R + 256 G + 256^2 B; 0 = no segment
panoptic.json       the segments of all images, in COCO panoptic format
semantic/NAME.png   the class of every pixel from semantic inference; 255 = no class
overlay/NAME.png    the segments drawn over the image, with a legend
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from simcis_jax.data.category_list import category_entries
from simcis_jax.errors import FileError, writing
from simcis_jax.evaluation import pictures
from simcis_jax.prediction.predictor import Prediction
from simcis_jax.runtime.files import write_atomically
from simcis_jax.types import Categories

KINDS = ('panoptic', 'semantic', 'overlay')
RESULTS = 'panoptic.json'


class PredictionFolder:
    """Writes predictions into a folder; `add` may be called from several threads.

    Args:
        root: path of the folder; files of an earlier prediction are replaced.
        categories: the classes; the label of a class is its position.
        images: all images that may be added. Results keep the folders below their common folder.
    """

    def __init__(self, root: str | Path, categories: Categories, images: Sequence[Path]):
        self.root, self._categories = Path(root), categories
        make_folder(self.root)
        places = [Path(os.path.abspath(path)) for path in images]
        self.image_root = Path(os.path.commonpath([path.parent for path in places]))
        names = [path.relative_to(self.image_root) for path in places]
        stems = [name.with_suffix('') for name in names]
        # If two images differ only in extension, as x.jpg and x.png do, all keep theirs: x.jpg.png.
        outputs = names if len(set(stems)) < len(stems) else stems
        self._names = {
            path: (number, name.as_posix(), f'{output.as_posix()}.png')
            for number, (path, name, output) in enumerate(zip(images, names, outputs, strict=True))
        }
        self._entries = {}

    def add(self, path: Path, image: np.ndarray, prediction: Prediction) -> None:
        """Writes the PNGs of one image [H, W, 3] uint8; on an error, none of them is left.

        Raises:
            StorageError: the disk is full, read-only or broken.
            FileError: a file of this image cannot be written.
        """
        number, name, output = self._names[path]
        segment_map, labels = prediction.segment_map, prediction.labels
        ids = np.stack([segment_map >> shift & 255 for shift in (0, 8, 16)], axis=-1)
        overlay = pictures.overlay(image, segment_map, labels, self._categories)
        legend = pictures.legend(labels, self._categories)
        results = (
            ids.astype(np.uint8),
            self._semantic(prediction),
            pictures.with_legend(overlay, legend),
        )
        targets = [self.root / kind / output for kind in KINDS]
        try:
            for target, result in zip(targets, results, strict=True):
                make_folder(target.parent)
                pictures.write_png(target, result)
        except FileError:
            for target in targets:
                with contextlib.suppress(OSError):
                    target.unlink()
            raise
        height, width = segment_map.shape
        listed = {'id': number + 1, 'file_name': name, 'height': height, 'width': width}
        self._entries[number] = listed, output, self._segments(prediction)

    def write_json(self) -> None:
        """Writes panoptic.json for all added images, in the order of `images`."""
        entries = [self._entries[number] for number in sorted(self._entries)]
        content = {
            'info': {'description': f'Predictions for images in {self.image_root}'},
            'images': [image for image, _, _ in entries],
            'annotations': [
                {'image_id': image['id'], 'file_name': output, 'segments_info': segments}
                for image, output, segments in entries
            ],
            'categories': category_entries(self._categories),
        }
        write_atomically(self.root / RESULTS, json.dumps(content))

    def _semantic(self, prediction: Prediction) -> np.ndarray:
        """Labels [H, W] as grey values; 16 bits (65535 = no class) if 8 bits do not suffice."""
        kind = np.uint8 if len(self._categories) <= 255 else np.uint16
        return prediction.label_map.astype(kind)  # -1 becomes the largest value.

    def _segments(self, prediction: Prediction) -> list[dict[str, Any]]:
        segments = []
        for number, (label, score) in enumerate(
            zip(prediction.labels, prediction.scores, strict=True), start=1
        ):
            mask = prediction.segment_map == number
            segments.append(
                {
                    'id': number,
                    'category_id': self._categories.ids[label],
                    'area': int(mask.sum()),
                    'bbox': list(cv2.boundingRect(mask.astype(np.uint8))),
                    'iscrowd': 0,
                    'score': round(float(score), 4),
                }
            )
        return segments


def make_folder(path: Path) -> None:
    """Makes a folder and its parents; raises FileError if that fails."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
