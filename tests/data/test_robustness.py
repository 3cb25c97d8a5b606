"""Fuzz tests: a mutated file is either decoded correctly or rejected with its name and the reason.

The expected content of a PNG is the array from which it was encoded; that of a JSON file comes from
a loop over it. Of a damaged JPEG only the size is checked, because its pixels have no checksum.
"""

import json
import pathlib
import struct

import cv2
import numpy as np
import pytest
from data.ade20k_tree import make_tree
from data.packed_png import png
from data.panoptic_tree import make_coco
from data.test_ade20k import panoptic_by_loops

from simcis_jax.data.ade20k import Ade20k
from simcis_jax.data.coco_panoptic import coco_panoptic_split
from simcis_jax.data.prepared import Prepared
from simcis_jax.data.semantic_folder import SemanticFolder
from simcis_jax.prepare import prepare

REFUSED = 'must be rejected'


def with_exif(jpeg):
    """Adds an EXIF orientation of a quarter turn to a JPEG: TIFF tag 0x0112 with value 6."""
    tiff = b'II*\0' + struct.pack('<IHHHIHHI', 8, 1, 0x0112, 3, 1, 6, 0, 0)
    marker = b'\xff\xe1' + struct.pack('>H', len(tiff) + 8) + b'Exif\0\0' + tiff
    return jpeg[:2] + marker + jpeg[2:]


def image_variants(encoded):
    """Maps other encodings of an image to the RGB pixels that each must be decoded to."""
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    wide = (image.astype(np.uint16) << 8) + 77
    cmyk = pathlib.Path(__file__).parent / 'cmyk_red_8x6.jpg'
    return {
        encoded: image[..., ::-1],
        with_exif(encoded): image[..., ::-1],
        cv2.imencode('.png', grey)[1].tobytes(): np.repeat(grey[..., None], 3, axis=-1),
        cv2.imencode('.png', wide)[1].tobytes(): image[..., ::-1],
        cv2.imencode('.png', np.rot90(image))[1].tobytes(): REFUSED,  # Another size.
        cmyk.read_bytes(): REFUSED,  # Another size, too.
    }


def label_variants(encoded):
    """Maps other encodings of a label map to the labels that each must be decoded to."""
    labels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    return {
        encoded: labels,
        png(labels, depth=8, color_type=3, palette=bytes(range(256)) * 3): labels,
        png(labels, depth=16, color_type=0): labels,
        png(np.repeat(labels[..., None], 3, axis=-1), depth=8, color_type=2): REFUSED,
        png(labels[:-1], depth=8, color_type=0): REFUSED,
        png(np.full_like(labels, 200), depth=8, color_type=0): REFUSED,  # No such class.
        cv2.imencode('.jpg', labels)[1].tobytes(): REFUSED,
    }


def color_variants(encoded):
    """Maps other encodings of a colour map to the RGB colours that each must be decoded to."""
    colors = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    used, indices = np.unique(colors.reshape(-1, 3), axis=0, return_inverse=True)
    indices = indices.reshape(colors.shape[:2])
    opaque = np.concatenate([colors, np.full_like(colors[..., :1], 255)], axis=-1)
    return {
        encoded: colors,
        png(indices, depth=8, color_type=3, palette=used.astype(np.uint8).tobytes()): colors,
        png(opaque, depth=8, color_type=6): colors,
        png(colors, depth=16, color_type=2): REFUSED,
        png(indices, depth=8, color_type=0): REFUSED,
        png(colors[:, :-1], depth=8, color_type=2): REFUSED,
        cv2.imencode('.jpg', colors)[1].tobytes(): REFUSED,
    }


class Coco:
    variants = {'images': image_variants, 'panoptic_train': color_variants}

    def make(self, root):
        return make_coco(root, num_val=0, official=False)

    def read(self, root):
        return list(coco_panoptic_split(root, 'train'))

    def expected(self, files, pixels):
        """Yields image, segment map and labels, by loops over the JSON."""
        content = json.loads(files['panoptic_train.json'])
        categories = sorted(entry['id'] for entry in content['categories'])
        names = {entry['id']: entry['file_name'] for entry in content['images']}
        for annotation in content['annotations']:
            colors = pixels[f'panoptic_train/{annotation["file_name"]}'].astype(int)
            ids = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
            segments = sorted(annotation['segments_info'], key=lambda segment: segment['id'])
            segment_map = np.zeros(ids.shape, int)
            for number, segment in enumerate(segments, start=1):
                segment_map[ids == segment['id']] = number
            assert set(np.unique(ids)) - {0} == {segment['id'] for segment in segments}
            labels = [categories.index(segment['category_id']) for segment in segments]
            yield pixels[f'images/train/{names[annotation["image_id"]]}'], segment_map, labels


class Semantic:
    variants = {'images': image_variants, 'semantic_train': label_variants}

    def make(self, root):
        rng = np.random.default_rng(0)
        for kind, extension, high, shape in (
            ('images/train', 'jpg', 256, (24, 32, 3)),
            ('semantic_train', 'png', 3, (24, 32)),
        ):
            (root / kind).mkdir(parents=True)
            for name in 'abc':
                picture = rng.integers(0, high, shape, dtype=np.uint8)
                picture[picture == 2] = 255  # Void, in the labels.
                cv2.imwrite(str(root / kind / f'{name}.{extension}'), picture)
        names = [{'id': 0, 'name': 'sky'}, {'id': 1, 'name': 'road'}]
        (root / 'categories.json').write_text(json.dumps(names))
        return root

    def read(self, root):
        return list(SemanticFolder(root, 'train'))

    def expected(self, files, pixels):
        entries = json.loads(files['categories.json'])
        for name in 'abc':
            labels = pixels[f'semantic_train/{name}.png']
            present = [label for label in range(len(entries)) if (labels == label).any()]
            segment_map = np.zeros(labels.shape, int)
            for number, label in enumerate(present, start=1):
                segment_map[labels == label] = number
            assert set(np.unique(labels)) <= {*range(len(entries)), 255}
            yield pixels[f'images/train/{name}.jpg'], segment_map, present


class Ade:
    variants = {
        'ADEChallengeData2016/images': image_variants,
        'ADEChallengeData2016/annotations': label_variants,
        'annotations_instance': color_variants,
    }

    def make(self, root):
        return make_tree(root, num_train=3, num_val=0, size=(24, 32))

    def read(self, root):
        return list(Ade20k(root, 'train', 'panoptic'))

    def expected(self, files, pixels):
        for number in range(1, 4):
            name = f'training/ADE_train_{number:08}'
            segment_map, labels = panoptic_by_loops(
                pixels[f'ADEChallengeData2016/annotations/{name}.png'],
                pixels[f'annotations_instance/{name}.png'],
            )
            yield pixels[f'ADEChallengeData2016/images/{name}.jpg'], segment_map, labels


def mutate(rng, content, others):
    """Returns a damaged copy of the content of a file, or the content of another file."""
    content = bytearray(content)
    position, length = int(rng.integers(len(content))), int(rng.integers(1, 9))
    match rng.integers(6):
        case 0:
            del content[position:]
        case 1:
            content[position] ^= 1 << int(rng.integers(8))
        case 2:
            for at in rng.integers(0, len(content), length):
                content[at] ^= 1 << int(rng.integers(8))
        case 3:
            content[position : position + length] = bytes(length)
        case 4:
            content[position:position] = rng.bytes(length)
        case 5:
            return others[rng.integers(len(others))]
    return bytes(content)


def check(source, root, files, known):
    """Reads the files and checks the result; returns whether they were rejected."""
    try:
        examples = source.read(root)
    except (ValueError, OSError) as error:
        assert str(root) in str(error) and '\n' not in str(error)
        return True
    pixels = {}
    for name, content in files.items():
        pixels[name] = known.get((pathlib.Path(name).parent, content), 'not known')
        assert pixels[name] is not REFUSED
        if name.endswith('.png'):
            assert not isinstance(pixels[name], str), 'A damaged PNG was decoded.'
    expected = list(source.expected(files, pixels))
    assert len(examples) == len(expected)
    for example, (image, segment_map, labels) in zip(examples, expected, strict=True):
        assert example.image.shape == (*segment_map.shape, 3) and example.image.dtype == np.uint8
        if not isinstance(image, str):
            np.testing.assert_array_equal(example.image, image)
        np.testing.assert_array_equal(example.segment_map, segment_map)
        np.testing.assert_array_equal(example.labels, labels)
    return False


@pytest.mark.parametrize('trials', [400, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize('source', [Coco(), Semantic(), Ade()], ids=lambda s: type(s).__name__)
def test_every_mutated_file_is_decoded_correctly_or_rejected(tmp_path, source, trials):
    root = source.make(tmp_path / 'data')
    paths = sorted(path for path in root.rglob('*') if path.is_file())
    files = {str(path.relative_to(root)): path.read_bytes() for path in paths}
    known, variants = {}, {}
    for name, content in files.items():
        for folder, make_variants in source.variants.items():
            if name.startswith(f'{folder}/'):
                variants[name] = make_variants(content)
                parent = pathlib.Path(name).parent
                known |= {(parent, other): meant for other, meant in variants[name].items()}
    assert not check(source, root, files, known)  # Undamaged files are accepted.
    rng = np.random.default_rng(trials)
    for name, content in files.items():
        for other, meant in variants.get(name, {}).items():
            (root / name).write_bytes(other)
            refused = check(source, root, files | {name: other}, known)
            assert refused == (meant is REFUSED), name
        (root / name).write_bytes(content)
    num_refused = 0
    for _ in range(trials):
        name = list(files)[rng.integers(len(files))]
        content = mutate(rng, files[name], list(files.values()))
        (root / name).write_bytes(content)
        num_refused += check(source, root, files | {name: content}, known)
        (root / name).write_bytes(files[name])
    print(f'{num_refused} of {trials} mutated files rejected, the others decoded correctly')
    assert 0.3 * trials < num_refused < trials


def test_prepare_skips_bad_files_and_keeps_the_others(tmp_path):
    root = make_tree(tmp_path / 'source', num_train=40, size=(24, 24))
    files = [path for path in sorted(root.rglob('*train_*')) if path.is_file()]
    rng = np.random.default_rng(0)
    others = [path.read_bytes() for path in files]
    for path in rng.choice(files, 30, replace=False):
        path.write_bytes(mutate(rng, path.read_bytes(), others))
    raw, reasons, left = Ade20k(root, 'train', 'panoptic'), [], []
    for index in range(len(raw)):
        try:
            left.append(raw[index])
        except ValueError as error:
            reasons.append(f'train: {error}')
    assert 10 < len(reasons) < 30
    (line,) = prepare('ade20k_panoptic', root, tmp_path, allow_partial=True, skip_bad=True)
    assert f'{len(left)} train, 2 val images, {len(reasons)} skipped' in line
    listed = (tmp_path / 'ade20k_panoptic/1.0.0/skipped.txt').read_text().splitlines()
    assert listed == reasons
    images = Prepared(tmp_path / 'ade20k_panoptic', 'train')
    for example, expected in zip(images, left, strict=True):
        assert example.image_id == expected.image_id
        np.testing.assert_array_equal(example.image, expected.image)
        np.testing.assert_array_equal(example.segment_map, expected.segment_map)
