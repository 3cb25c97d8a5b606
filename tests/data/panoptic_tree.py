"""Writes tiny synthetic data sets in the layouts of COCO panoptic and Cityscapes."""

import json
import pathlib

import cv2
import numpy as np

COCO_CATEGORIES = [
    {'id': 1, 'name': 'person', 'isthing': 1, 'color': [220, 20, 60], 'supercategory': 'person'},
    {'id': 17, 'name': 'cat', 'isthing': 1, 'color': [255, 77, 255], 'supercategory': 'animal'},
    {'id': 200, 'name': 'rug-merged', 'isthing': 0, 'color': [250, 141, 255]},
]
CITYSCAPES_CATEGORIES = [
    {'id': 7, 'name': 'road', 'isthing': 0, 'color': [128, 64, 128], 'supercategory': 'flat'},
    {'id': 23, 'name': 'sky', 'isthing': 0, 'color': [70, 130, 180], 'supercategory': 'sky'},
    {'id': 26, 'name': 'car', 'isthing': 1, 'color': [0, 0, 142], 'supercategory': 'vehicle'},
]


def draw(rng, categories, size=(24, 32)):
    """Draws an image, segment ids [H, W] (0 = void), and the `segments_info` of an annotation."""
    count = int(rng.integers(2, 5))
    ids = np.sort(rng.choice(2**24 - 1, count, replace=False) + 1)
    cells = rng.integers(0, count + 1, (4, 4))
    cells.flat[:count] = np.arange(1, count + 1)  # Every segment is visible.
    ids_map = np.append(0, ids)[np.kron(cells, np.ones((size[0] // 4, size[1] // 4), int))]
    segments = [
        {
            'id': int(segment_id),
            'category_id': int(rng.choice([entry['id'] for entry in categories])),
            'iscrowd': int(rng.random() < 0.2),
            'area': int((ids_map == segment_id).sum()),
        }
        for segment_id in ids
    ]
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return image, ids_map, segments


def write_png(path, ids_map):
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.stack([ids_map % 256, ids_map // 256 % 256, ids_map // 65536], axis=-1)
    cv2.imwrite(str(path), colors[..., ::-1].astype(np.uint8))


def make_coco(folder, num_train=3, num_val=2, *, official=True, seed=0):
    """Writes the layout of COCO, or with official=False that of `coco_panoptic_split`."""
    folder = pathlib.Path(folder)
    for split, count in (('train', num_train), ('val', num_val)):
        rng = np.random.default_rng([seed, split == 'val'])
        image_folder = folder / (f'{split}2017' if official else f'images/{split}')
        panoptic = folder / (
            f'annotations/panoptic_{split}2017' if official else f'panoptic_{split}'
        )
        image_folder.mkdir(parents=True)
        content = {'images': [], 'annotations': [], 'categories': COCO_CATEGORIES}
        for number in range(count):
            name = f'{number + 9:012}'
            image, ids_map, segments = draw(rng, COCO_CATEGORIES)
            cv2.imwrite(str(image_folder / f'{name}.jpg'), image)
            write_png(panoptic / f'{name}.png', ids_map)
            height, width = ids_map.shape
            content['images'].append(
                {'id': number + 9, 'file_name': f'{name}.jpg', 'width': width, 'height': height}
            )
            content['annotations'].append(
                {'image_id': number + 9, 'file_name': f'{name}.png', 'segments_info': segments}
            )
        panoptic.with_suffix('.json').write_text(json.dumps(content))
    return folder


def make_cityscapes(folder, num_train=3, num_val=2, *, seed=0):
    """Writes the layout of Cityscapes with the files that cityscapesScripts creates.

    As there, the image file names in the JSON do not exist."""
    folder = pathlib.Path(folder)
    for split, count in (('train', num_train), ('val', num_val)):
        rng = np.random.default_rng([seed, split == 'val'])
        panoptic = folder / f'gtFine/cityscapes_panoptic_{split}'
        content = {'images': [], 'annotations': [], 'categories': CITYSCAPES_CATEGORIES}
        for number in range(count):
            city = ('aachen', 'bad-town')[number % 2]
            name = f'{city}_{number:06}_000019'
            image, ids_map, segments = draw(rng, CITYSCAPES_CATEGORIES)
            path = folder / f'leftImg8bit/{split}/{city}/{name}_leftImg8bit.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
            write_png(panoptic / f'{name}_gtFine_panoptic.png', ids_map)
            content['images'].append(
                {
                    'id': name,
                    'file_name': f'{name}_gtFine_leftImg8bit.png',
                    'width': 32,
                    'height': 24,
                }
            )
            content['annotations'].append(
                {
                    'image_id': name,
                    'file_name': f'{name}_gtFine_panoptic.png',
                    'segments_info': segments,
                }
            )
        panoptic.with_suffix('.json').write_text(json.dumps(content))
    return folder
