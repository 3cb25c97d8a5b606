"""`simcis_jax.predict`, on one tiny model with random weights."""

import dataclasses
import errno
import json
import shutil
import struct
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from random_run import SHOW_ALL, random_run
from tiny import tiny_config

from simcis_jax import predict
from simcis_jax.data import Shapes
from simcis_jax.data.coco_panoptic import CocoPanoptic
from simcis_jax.data.evaluation_batches import load_batches, plan_batches
from simcis_jax.errors import StorageError
from simcis_jax.evaluation.pictures import write_png
from simcis_jax.prediction import predictor as predictor_module
from simcis_jax.prediction.prediction_folder import PredictionFolder
from simcis_jax.runtime import command
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.stage_folder import StageFolder
from simcis_jax.types import Categories

SIZES = [(64, 64), (7, 300), (121, 33), (1, 1), (90, 130), (64, 64)]


def image_of(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The work directory of a run whose stage 2 has random weights, and its trainer."""
    return random_run(tmp_path_factory.mktemp('runs') / 'random')


@pytest.fixture(scope='module')
def predictor(run):
    return predict.load(run[0] / 'stage_2', batch_size=2)


@pytest.fixture(scope='module')
def predicted(predictor, tmp_path_factory):
    """A folder of images, some of them broken; the folder of results; the files that failed."""
    folder = tmp_path_factory.mktemp('photos')
    (folder / 'more').mkdir()
    for number, size in enumerate(SIZES):
        write_png(folder / f'{number}.png', image_of(*size, seed=number))
    write_png(folder / 'more' / '0.png', image_of(50, 60, seed=7))
    (folder / 'broken.jpg').write_bytes((folder / '0.png').read_bytes()[:100])
    (folder / 'note.txt').write_text('no picture')
    out = folder / 'out'
    return folder, out, predict.predict_files(predictor, f'{folder}/**/*', out)


def test_a_run_records_its_classes(run):
    entries = json.loads((run[0] / 'categories.json').read_text())
    assert [entry['name'] for entry in entries] == list(run[1].categories.names)
    assert set(entries[0]) == {'id', 'name', 'isthing', 'color'}


def test_predictions_equal_those_of_the_evaluation(run, predictor):
    _, trainer = run
    example = Shapes('val', size=64)[0]
    source = [dataclasses.replace(example, image=image_of(64, 64, seed=seed)) for seed in range(4)]
    results = predictor([example.image for example in source])
    assert sum(len(result.labels) for result in results) > 4
    params = trainer.states.finished(trainer.stages[1]).params
    # The same batch size, because matrix products of other shapes round differently.
    plan = plan_batches([(64, 64)] * 4, range(4), batch_size=2, short_side=64, max_side=64)
    for number, batch in enumerate(load_batches(source, plan, batch_size=2)):
        output, *_ = trainer.evaluation.evaluator.predict(params, predictor.seen, batch)
        for row, result in enumerate(results[2 * number : 2 * number + 2]):
            np.testing.assert_array_equal(result.segment_map, output.segment_map[row])
            np.testing.assert_array_equal(result.labels, output.labels[row][: len(result.labels)])


def test_only_classes_seen_by_the_stage_are_predicted(run, predictor):
    stage = run[1].stages[1]
    assert set(np.flatnonzero(predictor.seen)) == set(stage.seen) == set(range(10))
    labels = np.concatenate([result.labels for result in predictor([image_of(64, 64)] * 3)])
    assert len(labels) and set(labels.tolist()) <= set(stage.seen)


def test_a_result_has_the_size_of_its_image_and_class_names(predictor):
    images = [image_of(*size) for size in SIZES]
    for image, result in zip(images, predictor(images), strict=True):
        assert result.segment_map.shape == image.shape[:2]
        assert result.segment_map.max() == len(result.labels) == len(result.scores)
        assert result.names == tuple(predictor.categories.names[label] for label in result.labels)
        assert ((result.scores > 0) & (result.scores <= 1)).all()


def test_results_of_large_images_are_enlarged(predictor, monkeypatch):
    image = image_of(96, 128)
    small = predictor(cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA))
    monkeypatch.setattr(predictor_module, 'MAX_RESULT_SIDE', 64)
    large = predictor(image)
    for name in ('segment_map', 'label_map'):
        result = getattr(large, name)
        assert result.shape == (96, 128)
        np.testing.assert_array_equal(result, result[::2, ::2].repeat(2, 0).repeat(2, 1))
    assert (large.segment_map[::2, ::2] == small.segment_map).mean() > 0.9


def test_few_images_wait_for_others_of_their_shape(predictor):
    taken = []

    def images():  # No two have the same padded shape.
        for index in range(20):
            taken.append(index)
            yield predictor_module.PreparedImage(
                index, np.zeros((64, 64, 3), np.uint8), np.zeros((32, 32 + 32 * index, 3)), (64, 64)
            )

    waiting, groups = [], []
    for group in predictor._groups(images()):
        groups += group
        waiting.append(len(taken) - len(groups))
    assert [image.key for image in groups] == list(range(20))  # The longest waiting goes first.
    assert max(waiting) < predictor_module.MAX_WAITING * predictor.batch_size


def test_one_image_gives_the_same_result_alone_and_in_a_list(predictor):
    images = [image_of(64, 64, seed=seed) for seed in range(3)]
    alone = predictor(images[2])
    np.testing.assert_array_equal(alone.segment_map, predictor(images)[2].segment_map)


def test_a_known_shape_is_not_compiled_again(predictor):
    predictor(image_of(64, 64))
    compiled = []

    def listen(name, *_, **__):
        if name == '/jax/core/compile/backend_compile_duration':
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    predictor([image_of(64, 64, seed=1), image_of(63, 60)])
    assert not compiled
    jax.jit(lambda x: 3 * x)(1.0)
    assert compiled  # The hook detects compilation.


@pytest.mark.parametrize(
    'image',
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)],
    ids=['float', 'grey', 'alpha'],
)
def test_arrays_that_are_not_rgb_images_are_refused(predictor, image):
    with pytest.raises(ValueError, match=r'image 0 is .*; a predictor needs RGB images uint8'):
        predictor([image])


def test_pngs_and_json_hold_the_prediction(predictor, predicted):
    folder, out, _ = predicted
    source = CocoPanoptic(folder, out / 'panoptic', out / 'panoptic.json')
    assert source.categories == predictor.categories
    content = json.loads((out / 'panoptic.json').read_text())
    assert [image['file_name'] for image in content['images']] == [
        *(f'{number}.png' for number in range(len(SIZES))),
        'more/0.png',
    ]
    for index, size in enumerate([*SIZES, (50, 60)]):
        example = source[index]
        assert example.image.shape[:2] == size
        result = predictor(example.image)
        np.testing.assert_array_equal(example.segment_map, result.segment_map)
        np.testing.assert_array_equal(example.labels, result.labels)
        segments = content['annotations'][index]['segments_info']
        for number, segment in enumerate(segments, start=1):
            rows, columns = np.nonzero(example.segment_map == number)
            left, top, width, height = segment['bbox']
            assert segment['area'] == len(rows)
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)


def test_semantic_pngs_hold_labels_and_255(predictor, predicted):
    folder, out, _ = predicted
    found = set()
    for number, size in enumerate(SIZES):
        values = cv2.imread(str(out / 'semantic' / f'{number}.png'), cv2.IMREAD_UNCHANGED)
        result = predictor(image_of(*size, seed=number))
        assert values.dtype == np.uint8
        np.testing.assert_array_equal(values, np.where(result.label_map < 0, 255, result.label_map))
        found |= set(values.flat)
    assert len(found) > 1


def test_every_image_has_an_overlay(predicted):
    _, out, _ = predicted
    for number in range(len(SIZES)):
        assert cv2.imread(str(out / 'overlay' / f'{number}.png')) is not None


def test_broken_files_are_listed_with_reasons(predicted):
    folder, _, failed = predicted
    assert set(failed) == {folder / 'broken.jpg', folder / 'note.txt'}
    assert 'broken.jpg (100 bytes) cannot be decoded' in failed[folder / 'broken.jpg']


def test_a_result_that_cannot_be_written_is_listed_and_leaves_nothing(predictor, tmp_path):
    (tmp_path / 'in').mkdir()
    for name in ('a.png', 'b.png', 'c.png'):
        write_png(tmp_path / 'in' / name, image_of(64, 64))
    (tmp_path / 'out' / 'overlay' / 'b.png').mkdir(parents=True)  # Its last result file.
    failed = predict.predict_files(predictor, tmp_path / 'in', tmp_path / 'out')
    assert list(failed) == [tmp_path / 'in' / 'b.png']
    assert 'overlay/b.png cannot be written' in failed[tmp_path / 'in' / 'b.png']
    content = json.loads((tmp_path / 'out' / 'panoptic.json').read_text())
    assert [image['file_name'] for image in content['images']] == ['a.png', 'c.png']
    for kind in ('panoptic', 'semantic'):
        assert {p.name for p in (tmp_path / 'out' / kind).iterdir()} == {'a.png', 'c.png'}


def test_a_full_disk_stops_prediction_and_keeps_finished_results(predictor, tmp_path, monkeypatch):
    (tmp_path / 'in').mkdir()
    for number in range(24):
        write_png(tmp_path / 'in' / f'{number:02}.png', image_of(64, 64))
    write_bytes = Path.write_bytes

    def write(path, data):
        if path.parent.name == 'semantic' and path.stem >= '04':
            raise OSError(errno.ENOSPC, 'No space left on device')
        return write_bytes(path, data)

    monkeypatch.setattr(Path, 'write_bytes', write)
    with pytest.raises(
        StorageError, match=r'04.png cannot be written \(No space left.*free some space'
    ):
        predict.predict_files(predictor, tmp_path / 'in', tmp_path / 'out')
    content = json.loads((tmp_path / 'out' / 'panoptic.json').read_text())
    assert [image['file_name'] for image in content['images']] == [f'0{i}.png' for i in range(4)]
    assert len(list((tmp_path / 'out' / 'panoptic').iterdir())) == 4


def test_a_run_folder_means_its_newest_finished_stage(run, tmp_path):
    shutil.copytree(run[0], tmp_path / 'run')
    with StageCheckpoints(tmp_path / 'run' / 'stage_3' / 'checkpoints') as checkpoints:
        checkpoints.save(1, run[1].states.new(run[1].stages[0], None))  # Not evaluated yet.
    seen = predict.load(tmp_path / 'run').seen
    assert set(np.flatnonzero(seen)) == set(run[1].stages[1].seen)
    assert predict.load(tmp_path / 'run' / 'stage_3').seen.sum() == len(run[1].stages[2].seen)


def test_a_second_prediction_skips_the_results_of_the_first(predictor, predicted):
    folder, out, failed = predicted
    assert predict.predict_files(predictor, f'{folder}/**/*.*', out).keys() >= failed.keys()
    assert not list((out / 'overlay' / 'out').glob('**/*'))


def test_images_of_the_same_name_have_separate_results(predictor, tmp_path):
    for name in ('a/x.jpg', 'b/x.png', 'b/x.jpg', 'b/x.jpg.png'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix, image_of(64, 64))[1].tobytes())
    assert not predict.predict_files(predictor, f'{tmp_path}/*/*', tmp_path / 'out')
    content = json.loads((tmp_path / 'out' / 'panoptic.json').read_text())
    names = {image['file_name'] for image in content['images']}
    assert names == {'a/x.jpg', 'b/x.png', 'b/x.jpg', 'b/x.jpg.png'}
    for kind in ('panoptic', 'semantic', 'overlay'):
        written = {
            str(p.relative_to(tmp_path / 'out' / kind))
            for p in (tmp_path / 'out' / kind).rglob('*.png')
        }
        assert written == {f'{name}.png' for name in names}


def with_orientation(jpeg, orientation):
    """Adds an EXIF block with only an orientation to a JPEG."""
    entry = struct.pack('<HHIHH', 0x0112, 3, 1, orientation, 0)
    exif = b'Exif\0\0II*\0' + struct.pack('<IH', 8, 1) + entry + struct.pack('<I', 0)
    return jpeg[:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif + jpeg[2:]


def test_photos_are_rotated_by_their_exif_orientation(predictor, tmp_path):
    image = image_of(40, 90)
    jpeg = cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    (tmp_path / 'a.jpg').write_bytes(with_orientation(jpeg, 6))
    assert not predict.predict_files(predictor, f'{tmp_path}/a.jpg', tmp_path / 'out')
    listed = json.loads((tmp_path / 'out' / 'panoptic.json').read_text())['images'][0]
    assert (listed['width'], listed['height']) == (40, 90)
    panoptic = cv2.imread(str(tmp_path / 'out' / 'panoptic' / 'a.png'))
    assert panoptic.shape[:2] == (90, 40)
    upright = np.rot90(predict.read_image(tmp_path / 'a.jpg'), -1)
    result = predictor(np.ascontiguousarray(upright))
    np.testing.assert_array_equal(panoptic[..., 2], result.segment_map)


def test_the_command_writes_results_and_lists_failed_images_at_the_end(
    run, predicted, tmp_path, capsys
):
    command = [f'--checkpoint={run[0]}/stage_2', f'--images={predicted[0]}/[0b]*', '--batch_size=2']
    with pytest.raises(SystemExit) as end:
        predict.main([*command, f'--out={tmp_path}/out', '--object_mask_threshold=1'])
    assert end.value.code == 1
    printed = capsys.readouterr()
    assert 'predicted 2/2' in printed.out
    assert 'no result for 1 of the images' in printed.err and 'broken.jpg' in printed.err
    content = json.loads((tmp_path / 'out' / 'panoptic.json').read_text())
    assert len(content['images']) == 1
    assert content['annotations'][0]['segments_info'] == []  # No score exceeds 1.


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--images=nothing/*.jpg'], 'matches no file'),
        (['--checkpoint=nowhere/stage_1'], 'must be a folder stage_N'),
        (['--short_side=0'], 'evaluation.short_side=0 must be a whole number, at least 1.'),
        (['--overlap_threshold=2'], 'evaluation.overlap_threshold=2.0 must be a finite number'),
        (['--object_mask_threshold=nan'], 'evaluation.object_mask_threshold=nan must be'),
        (['stray.jpg'], "unexpected 'stray.jpg'; separate several files by spaces: --images FILE"),
        (['--images', 'nowhere.jpg'], '--images=nowhere.jpg does not exist'),
        (['--out={images}/0.png'], '0.png cannot be written (File exists)'),
        (['--categories=nowhere.json'], 'nowhere.json does not exist'),
        (['--categories={images}'], 'is a folder, but a file is needed'),
        (['--config.data.size=32'], 'changes a config, so it needs --config=NAME'),
        (['--config=nowhere.py'], 'nowhere.py does not exist'),
    ],
)
def test_bad_input_is_one_line(run, predicted, tmp_path, capsys, arguments, message):
    command = [f'--checkpoint={run[0]}/stage_2', f'--images={predicted[0]}/0.png']
    with pytest.raises(SystemExit):
        arguments = [text.replace('{images}', str(predicted[0])) for text in arguments]
        predict.main([*command, f'--out={tmp_path}/out', *arguments])
    error = capsys.readouterr().err.splitlines()[-1]
    assert 'error: ' in error and message in error


@pytest.fixture
def converted(run, tmp_path):
    """The same weights in a folder without config and categories, as conversion makes it."""
    folder = StageFolder(tmp_path / 'converted' / 'stage_2')
    folder.copy_from(StageFolder(run[0] / 'stage_2'))
    return folder.root


def test_a_model_without_a_run_needs_a_config(converted):
    with pytest.raises(ValueError, match='has no config.json of a run; name the config'):
        predict.load(converted)


def test_a_model_without_a_run_gets_classes_from_a_file_or_the_data_set(run, converted):
    config = tiny_config(**SHOW_ALL).to_dict()
    from_data = predict.load(converted, config=config)
    assert from_data.categories.names == run[1].categories.names
    config['data'] |= {'name': 'coco_panoptic', 'root': 'nowhere'}
    from_file = predict.load(converted, config=config, categories=run[0] / 'categories.json')
    assert from_file.categories.names == run[1].categories.names
    with pytest.raises(ValueError, match='categories.json does not exist, and the data set'):
        predict.load(converted, config=config)


def test_arguments_replace_config_values():
    config = command.read_config('configs/shapes_cps_8_2.py', ['--config.protocol.base=6'])
    assert config['protocol']['base'] == 6


def test_a_config_that_does_not_fit_the_model_is_refused(converted):
    with pytest.raises(ValueError, match='model.* and the categories to those of its run'):
        predict.load(converted, config=tiny_config(**{'model.hidden_dim': 64}).to_dict())
    with pytest.raises(ValueError, match='is stage 2, but protocol.base'):
        predict.load(converted, config=tiny_config(**{'protocol.base': 12}).to_dict())


def test_with_a_run_a_config_may_differ_in_the_evaluation_only(run):
    stage = run[0] / 'stage_2'
    config = tiny_config(**SHOW_ALL | {'evaluation.semantic_threshold': 0.1})
    assert predict.load(stage, config=config).evaluation.semantic_threshold == 0.1
    other = tiny_config(**{'protocol.order': 'descending'})
    message = "not the config of .*: protocol.order is 'origin' there and 'descending' now; leave"
    with pytest.raises(ValueError, match=message):
        predict.load(stage, config=other)


def test_without_mask_unseen_all_classes_can_be_predicted(converted):
    config = tiny_config(**{'protocol.mask_unseen': False}).to_dict()
    assert predict.load(converted, config=config).seen is None


def test_many_classes_need_16_bits(predictor, tmp_path):
    names = tuple(f'class {label}' for label in range(300))
    categories = Categories(names, (True,) * 300, ((1, 2, 3),) * 300)
    folder = PredictionFolder(tmp_path / 'out', categories, [tmp_path / 'a.jpg'])
    segment_map = np.array([[0, 1], [2, 2]], np.int32)
    label_map = np.array([[-1, 299], [255, 255]], np.int32)
    result = predict.Prediction(segment_map, np.array([299, 255]), ('', ''), np.ones(2), label_map)
    folder.add(tmp_path / 'a.jpg', np.zeros((2, 2, 3), np.uint8), result)
    values = cv2.imread(str(tmp_path / 'out' / 'semantic' / 'a.png'), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(values, [[65535, 299], [255, 255]])
