"""Writes tiny synthetic data sets in the layout of the ADE20K download."""

import pathlib
import shutil
import tarfile
import zipfile

import cv2
import numpy as np

from simcis_jax.data.ade20k import CATEGORIES, LABEL_OF_INSTANCE

FOLDERS = {'train': 'training', 'val': 'validation'}
REAL = pathlib.Path(__file__).parent / 'ade20k_annotations'


def make_tree(folder, num_train=4, num_val=2, *, classes=range(150), size=(60, 80), seed=0):
    """Writes images, semantic and instance maps; returns `folder`.

    As in the real data set, the two maps disagree in places: some pixels of an instance are stuff
    in the semantic map, and some thing pixels of the semantic map have no instance.

    Args:
        folder: folder in which ADEChallengeData2016 and annotations_instance are created.
        num_train: number of images in 'training'.
        num_val: number of images in 'validation'.
        classes: labels to draw from, both stuff and things; an image has up to seven of them.
        size: height and width of the images; swapped in every other image.
        seed: random seed.
    """
    folder = pathlib.Path(folder)
    for split, count in (('train', num_train), ('val', num_val)):
        for number in range(1, count + 1):
            rng = np.random.default_rng([seed, split == 'val', number])
            labels, instances = draw(rng, classes, size if number % 2 else size[::-1])
            write(folder, split, number, painted(rng, labels), labels, instances)
    return folder


def add_real_annotations(folder):
    """Adds three real semantic annotations, without instances, as validation images."""
    for number in (1, 2, 3):
        labels = cv2.imread(str(REAL / f'ADE_val_{number:08}.png'), cv2.IMREAD_UNCHANGED)
        write(folder, 'val', number, painted(np.random.default_rng(number), labels), labels)


def painted(rng, labels):
    """Draws an image [H, W, 3] uint8 with the colours of the classes, plus noise."""
    colors = np.array([(0, 0, 0), *CATEGORIES.colors])[labels]
    return np.clip(colors + rng.normal(0, 12, colors.shape), 0, 255).astype(np.uint8)


def write(folder, split, number, image, labels, instances=None):
    """Writes the files of one image."""
    pictures = {
        'ADEChallengeData2016/images': ('jpg', image[..., ::-1]),
        'ADEChallengeData2016/annotations': ('png', labels),
    }
    if instances is not None:
        pictures['annotations_instance'] = 'png', instances[..., ::-1]
    for kind, (extension, picture) in pictures.items():
        path = folder / kind / FOLDERS[split] / f'ADE_{split}_{number:08}.{extension}'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)


def draw(rng, classes, size):
    """Draws a semantic map [H, W] uint8 (0 = void) and an instance map [H, W, 3] uint8."""
    things = [label for label in classes if CATEGORIES.is_thing[label]]
    stuff = [label for label in classes if not CATEGORIES.is_thing[label]]
    rows, columns = np.mgrid[: size[0], : size[1]]
    labels = np.zeros(size, np.uint8)
    edges = np.sort(rng.integers(4, size[0] - 4, 2))
    for top, bottom in zip([2, *edges], [*edges, size[0]], strict=True):
        labels[top:bottom] = rng.choice(stuff) + 1
    instances = np.zeros((*size, 3), np.uint8)
    for number in range(1, rng.integers(2, 6)):
        label = rng.choice(things)
        center = rng.uniform((0, 0), size)
        radius = rng.uniform(0.1, 0.3) * min(size)
        distance = np.hypot(rows - center[0], columns - center[1])
        labels[distance < radius] = label + 1
        category = int(np.flatnonzero(LABEL_OF_INSTANCE == label)[0])
        # Shifted by 2 pixels, so that the instance map and the semantic map disagree.
        shifted = np.hypot(rows - center[0], columns - center[1] - 2) < radius
        instances[shifted] = (category, number, 0)
    return labels, instances


def to_archives(folder):
    """Packs a tree into a zip and a tar archive, as in the download."""
    folder = pathlib.Path(folder)
    with zipfile.ZipFile(folder / 'ADEChallengeData2016.zip', 'w') as archive:
        for path in sorted((folder / 'ADEChallengeData2016').rglob('*')):
            archive.write(path, path.relative_to(folder))
    with tarfile.open(folder / 'annotations_instance.tar', 'w') as archive:
        archive.add(folder / 'annotations_instance', 'annotations_instance')
    for name in ('ADEChallengeData2016', 'annotations_instance'):
        shutil.rmtree(folder / name)
    return folder
