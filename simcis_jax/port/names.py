"""The names and layouts of PyTorch weights, as tables: published names on the left, ours right.

The published code and the original Mask2Former are detectron2 models and share most rows.
`growing_models` adds the rows of what every stage adds, `hugging_face_names` has the tables of
transformers.
"""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    """The names of one kind of model."""

    model: str  # In error messages.
    # (published module, our module, its weights); {} is the number of a block or layer, from 0.
    table: tuple
    ignored: str = r'(?!)'  # Pattern of published keys that hold no weights.


# Axes, published -> ours. Along the axis n, one published array is split into several of ours: the
# query, key and value projections of an attention layer. Elsewhere n is 1.
VECTOR = '(n o) -> n o'
MATRIX = '(n o) i -> n i o'
FILTER = '(n o) i h w -> n h w i o'
ROWS = '(n r) d -> n r d'

# The weights of a module: (published name, our names, axes).
NORM = (('weight', ['scale'], VECTOR), ('bias', ['bias'], VECTOR))
KERNEL = (('weight', ['kernel'], MATRIX),)
LINEAR = (*KERNEL, ('bias', ['bias'], VECTOR))
CONV = (('weight', ['kernel'], FILTER),)
CONV_BIAS = (*CONV, ('bias', ['bias'], VECTOR))
CONV_FROZEN_NORM = (
    ('weight', ['conv/kernel'], FILTER),
    ('norm.weight', ['norm/frozen_scale'], VECTOR),
    ('norm.bias', ['norm/frozen_bias'], VECTOR),
    ('norm.running_mean', ['norm/frozen_mean'], VECTOR),
    ('norm.running_var', ['norm/frozen_variance'], VECTOR),
)
ATTENTION = (
    ('in_proj_weight', ['query/kernel', 'key/kernel', 'value/kernel'], MATRIX),
    ('in_proj_bias', ['query/bias', 'key/bias', 'value/bias'], VECTOR),
    ('out_proj.weight', ['output/kernel'], MATRIX),
    ('out_proj.bias', ['output/bias'], VECTOR),
)
WINDOW_ATTENTION = (
    ('qkv.weight', ['query/kernel', 'key/kernel', 'value/kernel'], MATRIX),
    ('qkv.bias', ['query/bias', 'key/bias', 'value/bias'], VECTOR),
    ('proj.weight', ['output/kernel'], MATRIX),
    ('proj.bias', ['output/bias'], VECTOR),
    ('relative_position_bias_table', ['relative_position_bias'], ROWS),
)


def mlp(published: str, ours: str) -> tuple:
    """The rows of a table for an MLP of three layers."""
    return tuple((f'{published}.layers.{k}', f'{ours}/layer{k}/dense', LINEAR) for k in range(3))


PIXELS = 'sem_seg_head.pixel_decoder'
ENCODER = f'{PIXELS}.transformer.encoder.layers.{{}}'
PREDICTOR = 'sem_seg_head.predictor'
SELECTION = f'{PREDICTOR}.enc_output.'  # Only models with query pre-alignment have it.
SELF = f'{PREDICTOR}.transformer_self_attention_layers.{{}}'
CROSS = f'{PREDICTOR}.transformer_cross_attention_layers.{{}}'
FFN = f'{PREDICTOR}.transformer_ffn_layers.{{}}'
DECODER = 'decoder/layers_{}'

RESNET = (
    ('backbone.stem.conv1', 'resnet/stem', CONV_FROZEN_NORM),
    *(
        (f'backbone.res{s}.0.shortcut', f'resnet/res{s}_0/shortcut', CONV_FROZEN_NORM)
        for s in range(2, 6)
    ),
    *(
        (f'backbone.res{s}.{{}}.conv{k}', f'resnet/res{s}_{{}}/conv{k}', CONV_FROZEN_NORM)
        for s in range(2, 6)
        for k in (1, 2, 3)
    ),
)
SWIN_BLOCK = (
    ('norm1', 'norm1', NORM),
    ('attn', 'attention', WINDOW_ATTENTION),
    ('norm2', 'norm2', NORM),
    ('mlp.fc1', 'linear1', LINEAR),
    ('mlp.fc2', 'linear2', LINEAR),
)
SWIN = (
    ('backbone.patch_embed.proj', 'swin/patch_embedding', CONV_BIAS),
    ('backbone.patch_embed.norm', 'swin/patch_norm', NORM),
    *(
        (f'backbone.layers.{s}.blocks.{{}}.{theirs}', f'swin/stage{s + 1}_{{}}/{ours}', weights)
        for s in range(4)
        for theirs, ours, weights in SWIN_BLOCK
    ),
    *(
        (f'backbone.layers.{s}.downsample.{theirs}', f'swin/merging{s + 1}/{theirs}', weights)
        for s in range(3)
        for theirs, weights in (('norm', NORM), ('reduction', KERNEL))
    ),
    *((f'backbone.norm{s}', f'swin/output_norm{s + 1}', NORM) for s in range(4)),
)
PIXEL_DECODER = (
    *((f'{PIXELS}.input_proj.{k}.0', f'pixel_decoder/input{k}', CONV_BIAS) for k in range(3)),
    *((f'{PIXELS}.input_proj.{k}.1', f'pixel_decoder/input_norm{k}', NORM) for k in range(3)),
    (f'{PIXELS}.transformer', 'pixel_decoder', (('level_embed', ['level_embed'], ROWS),)),
    (f'{ENCODER}.self_attn.sampling_offsets', 'pixel_decoder/layer{}/attention/offsets', LINEAR),
    (f'{ENCODER}.self_attn.attention_weights', 'pixel_decoder/layer{}/attention/weights', LINEAR),
    (f'{ENCODER}.self_attn.value_proj', 'pixel_decoder/layer{}/attention/value', LINEAR),
    (f'{ENCODER}.self_attn.output_proj', 'pixel_decoder/layer{}/attention/output', LINEAR),
    (f'{ENCODER}.norm1', 'pixel_decoder/layer{}/attention_norm', NORM),
    (f'{ENCODER}.linear1', 'pixel_decoder/layer{}/feedforward/linear1', LINEAR),
    (f'{ENCODER}.linear2', 'pixel_decoder/layer{}/feedforward/linear2', LINEAR),
    (f'{ENCODER}.norm2', 'pixel_decoder/layer{}/feedforward/norm', NORM),
    (f'{PIXELS}.adapter_1', 'pixel_decoder/lateral', CONV),
    (f'{PIXELS}.adapter_1.norm', 'pixel_decoder/lateral_norm', NORM),
    (f'{PIXELS}.layer_1', 'pixel_decoder/output', CONV),
    (f'{PIXELS}.layer_1.norm', 'pixel_decoder/output_norm', NORM),
    (f'{PIXELS}.mask_features', 'pixel_decoder/mask_features', CONV_BIAS),
)
MASKED_DECODER = (
    (PREDICTOR, '', (('level_embed.weight', ['level_embedding'], ROWS),)),
    (f'{SELF}.self_attn', f'{DECODER}/self_attention', ATTENTION),
    (f'{SELF}.norm', f'{DECODER}/self_attention/norm', NORM),
    (f'{CROSS}.multihead_attn', f'{DECODER}/cross_attention', ATTENTION),
    (f'{CROSS}.norm', f'{DECODER}/cross_attention/norm', NORM),
    (f'{FFN}.linear1', f'{DECODER}/feedforward/linear1', LINEAR),
    (f'{FFN}.linear2', f'{DECODER}/feedforward/linear2', LINEAR),
    (f'{FFN}.norm', f'{DECODER}/feedforward/norm', NORM),
    (f'{PREDICTOR}.decoder_norm', 'heads/norm', NORM),
    *mlp(f'{PREDICTOR}.mask_embed', 'heads/mask_head'),
)
CLASS_HEAD = ((f'{PREDICTOR}.class_embed', 'heads/class_head/dense', LINEAR),)
SELECTED_QUERIES = (
    (f'{PREDICTOR}.enc_output', 'query_prealignment/output/dense', LINEAR),
    (f'{PREDICTOR}.encoder_norm', 'query_prealignment/norm', NORM),
    (f'{PREDICTOR}.ref_point_head.layers.0', 'decoder/position_head/layer0/dense', LINEAR),
    (f'{PREDICTOR}.ref_point_head.layers.1', 'decoder/position_head/layer1/dense', LINEAR),
    (f'{PREDICTOR}.query_scale.layers.0', 'decoder/position_scale/layer0/dense', LINEAR),
    (f'{PREDICTOR}.query_scale.layers.1', 'decoder/position_scale/layer1/dense', LINEAR),
    (f'{PREDICTOR}._bbox_embed.layers.0', 'heads/box_head/layer0/dense', LINEAR),
    (f'{PREDICTOR}._bbox_embed.layers.1', 'heads/box_head/layer1/dense', LINEAR),
    (f'{PREDICTOR}._bbox_embed.layers.2', 'heads/box_head/layer2', LINEAR),
)
LEARNED_QUERIES = (
    (f'{PREDICTOR}.query_feat', '', (('weight', ['learned_queries/features'], ROWS),)),
    (f'{PREDICTOR}.query_embed', '', (('weight', ['learned_queries/positions'], ROWS),)),
)

BUFFERS = r'criterion\.empty_weight|.*\.(relative_position_index|attn_mask|num_batches_tracked)'
BACKBONES = {'resnet': RESNET, 'swin': SWIN}
PUBLISHED = Layout(
    'published model with ResNet-50 or -101',
    RESNET + PIXEL_DECODER + SELECTED_QUERIES + MASKED_DECODER + CLASS_HEAD,
)
MASK2FORMER = {
    family: Layout(
        'Mask2Former with a ResNet or Swin backbone',
        rows + PIXEL_DECODER + LEARNED_QUERIES + MASKED_DECODER + CLASS_HEAD,
        BUFFERS,
    )
    for family, rows in BACKBONES.items()
}
BACKBONE = {
    'resnet': Layout('ResNet-50 or -101', RESNET, BUFFERS),
    'swin': Layout('Swin transformer', SWIN, BUFFERS),
}
