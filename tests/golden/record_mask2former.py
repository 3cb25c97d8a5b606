"""Records what transformers computes, as mask2former.npz, and the names in its files.

    pip install torch transformers scipy && python tests/golden/record_mask2former.py

The tests need neither. `plain_weights.py` draws the weights, images, targets and points.
"""

import gzip
import json
import re
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import safetensors
import safetensors.numpy
import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
)

GOLDEN = Path(__file__).parent
sys.path.insert(0, str(GOLDEN.parent))
import plain_weights as drawn  # noqa: E402

STAGES = ['stage1', 'stage2', 'stage3', 'stage4']
BACKBONES = {
    'swin_small': SwinConfig(
        embed_dim=32, depths=[1, 2, 2, 1], num_heads=[1, 2, 4, 8], window_size=4,
        out_features=STAGES,
    ),
    'swin_t': SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7,
        out_features=STAGES,
    ),
    'resnet50': ResNetConfig(out_features=STAGES),
}  # fmt: skip


def make_config(case):
    """The config of a case."""
    small = drawn.SMALL
    return Mask2FormerConfig(
        backbone_config=BACKBONES[case.backbone],
        num_queries=small['num_queries'],
        hidden_dim=small['hidden_dim'],
        feature_size=small['hidden_dim'],
        mask_feature_size=small['hidden_dim'],
        num_attention_heads=small['num_heads'],
        encoder_layers=small['encoder_layers'],
        encoder_feedforward_dim=small['encoder_feedforward'],
        decoder_layers=small['decoder_layers'] + 1,
        dim_feedforward=small['decoder_feedforward'],
        train_num_points=drawn.NUM_POINTS,
        num_labels=drawn.NUM_CLASSES,
        id2label={i: f'class {i}' for i in range(drawn.NUM_CLASSES)},
    )


def make_model(case, folder):
    """The model with drawn weights, loaded from a file that transformers wrote."""
    Mask2FormerForUniversalSegmentation(make_config(case)).save_pretrained(folder)
    path = folder / 'model.safetensors'
    shapes = {name: x.shape for name, x in safetensors.numpy.load_file(path).items()}
    arrays = {name: drawn.draw(name, shape) for name, shape in shapes.items()}
    safetensors.numpy.save_file(arrays, path, metadata={'format': 'pt'})
    model, report = Mask2FormerForUniversalSegmentation.from_pretrained(
        folder, output_loading_info=True, attn_implementation='eager'
    )
    assert not any(report.values()), report
    return model.eval(), shapes


class Recorder:
    """The outputs of modules, in the order of their calls."""

    def __init__(self):
        self.arrays = {}

    def watch(self, module, name, take=lambda output: output):
        """Records what `take` takes of every output of a module, as NAME/CALL."""
        calls = [0]

        def hook(_, __, output):
            self.arrays[f'{name}/{calls[0]}'] = take(output).detach().numpy()
            calls[0] += 1

        module.register_forward_hook(hook)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def watch_all(model, case):
    recorder = Recorder()
    pixels = model.model.pixel_level_module
    queries = model.model.transformer_module.decoder
    for i, layer in enumerate(pixels.decoder.encoder.layers):
        recorder.watch(layer, f'encoder{i}', first)
    for i, layer in enumerate(queries.layers):
        recorder.watch(layer, f'decoder{i}', lambda x: first(x).transpose(0, 1))
    # Before rows without an open key are opened; all heads have the same.
    heads = drawn.SMALL['num_heads']
    recorder.watch(
        queries.mask_predictor, 'blocked', lambda x: x[1].unflatten(0, (-1, heads))[:, 0]
    )
    return recorder


def recorded_draws(case_name):
    """A replacement of torch.rand that draws known points, in the order in which losses ask."""
    order = iter(())

    def rand(*shape, **_):
        return torch.from_numpy(drawn.points(f'{case_name} {next(order)}', shape))

    def begin(num_sets, batch):
        nonlocal order
        # The last set comes first; each is matched image by image, then sampled.
        sets = [num_sets - 1, *range(num_sets - 1)]
        order = iter(
            [
                f'{s} {part}'
                for s in sets
                for part in (*(f'match{b}' for b in range(batch)), 'candidates', 'uniform')
            ]
        )

    return rand, begin


def record(name, case):
    with tempfile.TemporaryDirectory() as folder:
        model, shapes = make_model(case, Path(folder))
        config = json.loads((Path(folder) / 'config.json').read_text())
    recorder = watch_all(model, case)
    height, width = case.size
    image = np.zeros((case.batch, *drawn.padded_size(case), 3), np.float32)
    image[:, :height, :width] = (drawn.images(case) - drawn.MEAN) / drawn.STD
    inputs = torch.from_numpy(image).permute(0, 3, 1, 2)
    segment_map, labels = drawn.targets(case)
    masks = [
        torch.from_numpy(np.stack([x == k + 1 for k in range(len(ids))]).astype(np.float32))
        if len(ids)
        else torch.zeros((0, *x.shape))
        for x, ids in zip(segment_map, labels, strict=True)
    ]
    matched = []
    matcher = model.criterion.matcher
    forward = matcher.forward

    def remember(*args, **kwargs):
        matched.append(forward(*args, **kwargs))
        return matched[-1]

    terms = {}
    get_loss_dict = model.get_loss_dict

    def remember_terms(*args, **kwargs):
        terms.update(get_loss_dict(*args, **kwargs))
        return terms

    rand, begin = recorded_draws(name)
    begin(drawn.NUM_LAYERS + 1, case.batch)
    with (
        mock.patch('torch.rand', rand),
        mock.patch.object(matcher, 'forward', remember),
        mock.patch.object(model, 'get_loss_dict', remember_terms),
    ):
        supervised = dict(mask_labels=masks, class_labels=[torch.from_numpy(x) for x in labels])
        out = model(
            pixel_values=inputs, output_hidden_states=True, output_auxiliary_logits=True,
            **supervised,
        )  # fmt: skip
    arrays = dict(recorder.arrays)
    for i, x in enumerate(out.encoder_hidden_states):
        arrays[f'backbone/{i}'] = x.permute(0, 2, 3, 1)
    for i, x in enumerate(out.pixel_decoder_hidden_states):
        arrays[f'map/{i}'] = x.permute(0, 2, 3, 1)
    arrays['mask_features'] = out.pixel_decoder_last_hidden_state.permute(0, 2, 3, 1)
    sets = [*out.auxiliary_logits, out]
    for i, x in enumerate(sets):
        x = x if isinstance(x, dict) else vars(x)
        arrays[f'class_logits/{i}'] = x['class_queries_logits']
        arrays[f'mask_logits/{i}'] = x['masks_queries_logits']
    arrays = {key: x.detach().numpy() if torch.is_tensor(x) else x for key, x in arrays.items()}
    result = {
        f'{name}/{key}': np.packbits(x) if x.dtype == bool else drawn.thinned(key, x)
        for key, x in arrays.items()
    }
    result |= segmentations(name, out)
    out.loss.backward()
    result[f'{name}/loss'] = out.loss.detach().numpy()
    for key, value in terms.items():
        result[f'{name}/{key}'] = value.detach().numpy()
    sets = [drawn.NUM_LAYERS, *range(drawn.NUM_LAYERS)]
    for number, matches in zip(sets, matched, strict=True):
        for b, (queries, columns) in enumerate(matches):
            result[f'{name}/matched/{number}/{b}'] = torch.stack([queries, columns]).numpy()
    result |= gradients(name, model)
    return result, shapes, config


def segmentations(name, out):
    """Semantic and instance results at the fixed size of transformers."""
    from transformers import Mask2FormerImageProcessor

    processor = Mask2FormerImageProcessor()
    semantic = processor.post_process_semantic_segmentation(out)
    result = {f'{name}/semantic': torch.stack(semantic).numpy().astype(np.uint8)}
    found = processor.post_process_instance_segmentation(
        out, threshold=0.0, return_binary_maps=True
    )
    for b, image in enumerate(found):
        info = image['segments_info']
        result[f'{name}/instance_labels/{b}'] = np.array([x['label_id'] for x in info])
        result[f'{name}/instance_scores/{b}'] = np.array([x['score'] for x in info])
        result[f'{name}/instance_areas/{b}'] = image['segmentation'].sum(dim=(1, 2)).numpy()
    return result


def gradients(name, model):
    """Norm of every gradient, and its thinned entries, by the names in files."""
    with tempfile.TemporaryDirectory() as folder:
        for parameter in model.parameters():
            parameter.data = (
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            )
        model.save_pretrained(folder)
        grads = safetensors.numpy.load_file(Path(folder) / 'model.safetensors')
    result = {}
    for key, x in grads.items():
        if not re.fullmatch(r'criterion\..*|.*\.(normalization|swin\.layernorm)\..*', key):
            result[f'{name}/gradient_norm/{key}'] = np.linalg.norm(x.astype(np.float64))
            flat = x.reshape(-1)
            result[f'{name}/gradient/{key}'] = flat[:: max(1, flat.size // 8) | 1]
    return result


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    result, lines, configs = {}, [], {}
    for name, case in drawn.CASES.items():
        arrays, shapes, configs[name] = record(name, case)
        result |= arrays
        lines += [f'{name}\t{key}\t{"x".join(map(str, shapes[key]))}\n' for key in sorted(shapes)]
    np.savez_compressed(GOLDEN / 'mask2former.npz', **result)
    with open(GOLDEN / 'mask2former_names.tsv.gz', 'wb') as file:
        file.write(gzip.compress(''.join(lines).encode(), mtime=0))
    (GOLDEN / 'mask2former_configs.json').write_text(json.dumps(configs, indent=1))


if __name__ == '__main__':
    main()
