"""The names of `Mask2FormerForUniversalSegmentation` in files of transformers; see `names`.

Files have the names of transformers 4; from version 5 on, it renames some of them while loading.
"""

from __future__ import annotations

from collections.abc import Collection

from simcis_jax.port.names import (
    ATTENTION,
    CONV,
    CONV_BIAS,
    FILTER,
    KERNEL,
    LINEAR,
    NORM,
    ROWS,
    VECTOR,
    Layout,
)

BACKBONE = 'model.pixel_level_module.encoder'
PIXELS = 'model.pixel_level_module.decoder'
ENCODER = f'{PIXELS}.encoder.layers.{{}}'
QUERIES = 'model.transformer_module'
LAYERS = f'{QUERIES}.decoder.layers.{{}}'
MASKS = f'{QUERIES}.decoder.mask_predictor.mask_embedder'
OURS = 'decoder/layers_{}'

CONV_FROZEN_NORM = (
    ('convolution.weight', ['conv/kernel'], FILTER),
    ('normalization.weight', ['norm/frozen_scale'], VECTOR),
    ('normalization.bias', ['norm/frozen_bias'], VECTOR),
    ('normalization.running_mean', ['norm/frozen_mean'], VECTOR),
    ('normalization.running_var', ['norm/frozen_variance'], VECTOR),
)
TABLE_OF_BIASES = (('relative_position_bias_table', ['relative_position_bias'], ROWS),)

RESNET = (
    (f'{BACKBONE}.embedder.embedder', 'resnet/stem', CONV_FROZEN_NORM),
    *(
        (
            f'{BACKBONE}.encoder.stages.{s}.layers.0.shortcut',
            f'resnet/res{s + 2}_0/shortcut',
            CONV_FROZEN_NORM,
        )
        for s in range(4)
    ),
    *(
        (
            f'{BACKBONE}.encoder.stages.{s}.layers.{{}}.layer.{k}',
            f'resnet/res{s + 2}_{{}}/conv{k + 1}',
            CONV_FROZEN_NORM,
        )
        for s in range(4)
        for k in range(3)
    ),
)
SWIN_BLOCK = (
    ('layernorm_before', 'norm1', NORM),
    ('attention.self.query', 'attention/query', LINEAR),
    ('attention.self.key', 'attention/key', LINEAR),
    ('attention.self.value', 'attention/value', LINEAR),
    ('attention.self', 'attention', TABLE_OF_BIASES),
    ('attention.output.dense', 'attention/output', LINEAR),
    ('layernorm_after', 'norm2', NORM),
    ('intermediate.dense', 'linear1', LINEAR),
    ('output.dense', 'linear2', LINEAR),
)
SWIN = (
    (f'{BACKBONE}.embeddings.patch_embeddings.projection', 'swin/patch_embedding', CONV_BIAS),
    (f'{BACKBONE}.embeddings.norm', 'swin/patch_norm', NORM),
    *(
        (
            f'{BACKBONE}.encoder.layers.{s}.blocks.{{}}.{theirs}',
            f'swin/stage{s + 1}_{{}}/{ours}',
            weights,
        )
        for s in range(4)
        for theirs, ours, weights in SWIN_BLOCK
    ),
    *(
        (
            f'{BACKBONE}.encoder.layers.{s}.downsample.{name}',
            f'swin/merging{s + 1}/{name}',
            weights,
        )
        for s in range(3)
        for name, weights in (('norm', NORM), ('reduction', KERNEL))
    ),
    *(
        (f'{BACKBONE}.hidden_states_norms.stage{s}', f'swin/output_norm{s}', NORM)
        for s in range(1, 5)
    ),
)
PIXEL_DECODER = (
    *(
        (f'{PIXELS}.input_projections.{k}.0', f'pixel_decoder/input{k}', CONV_BIAS)
        for k in range(3)
    ),
    *(
        (f'{PIXELS}.input_projections.{k}.1', f'pixel_decoder/input_norm{k}', NORM)
        for k in range(3)
    ),
    (PIXELS, 'pixel_decoder', (('level_embed', ['level_embed'], ROWS),)),
    (f'{ENCODER}.self_attn.sampling_offsets', 'pixel_decoder/layer{}/attention/offsets', LINEAR),
    (f'{ENCODER}.self_attn.attention_weights', 'pixel_decoder/layer{}/attention/weights', LINEAR),
    (f'{ENCODER}.self_attn.value_proj', 'pixel_decoder/layer{}/attention/value', LINEAR),
    (f'{ENCODER}.self_attn.output_proj', 'pixel_decoder/layer{}/attention/output', LINEAR),
    (f'{ENCODER}.self_attn_layer_norm', 'pixel_decoder/layer{}/attention_norm', NORM),
    (f'{ENCODER}.fc1', 'pixel_decoder/layer{}/feedforward/linear1', LINEAR),
    (f'{ENCODER}.fc2', 'pixel_decoder/layer{}/feedforward/linear2', LINEAR),
    (f'{ENCODER}.final_layer_norm', 'pixel_decoder/layer{}/feedforward/norm', NORM),
    (f'{PIXELS}.adapter_1.0', 'pixel_decoder/lateral', CONV),
    (f'{PIXELS}.adapter_1.1', 'pixel_decoder/lateral_norm', NORM),
    (f'{PIXELS}.layer_1.0', 'pixel_decoder/output', CONV),
    (f'{PIXELS}.layer_1.1', 'pixel_decoder/output_norm', NORM),
    (f'{PIXELS}.mask_projection', 'pixel_decoder/mask_features', CONV_BIAS),
)
MASKED_DECODER = (
    (f'{QUERIES}.queries_features', '', (('weight', ['learned_queries/features'], ROWS),)),
    (f'{QUERIES}.queries_embedder', '', (('weight', ['learned_queries/positions'], ROWS),)),
    (f'{QUERIES}.level_embed', '', (('weight', ['level_embedding'], ROWS),)),
    *(
        (f'{LAYERS}.self_attn.{theirs}_proj', f'{OURS}/self_attention/{ours}', LINEAR)
        for theirs, ours in (('q', 'query'), ('k', 'key'), ('v', 'value'), ('out', 'output'))
    ),
    (f'{LAYERS}.self_attn_layer_norm', f'{OURS}/self_attention/norm', NORM),
    (f'{LAYERS}.cross_attn', f'{OURS}/cross_attention', ATTENTION),
    (f'{LAYERS}.cross_attn_layer_norm', f'{OURS}/cross_attention/norm', NORM),
    (f'{LAYERS}.fc1', f'{OURS}/feedforward/linear1', LINEAR),
    (f'{LAYERS}.fc2', f'{OURS}/feedforward/linear2', LINEAR),
    (f'{LAYERS}.final_layer_norm', f'{OURS}/feedforward/norm', NORM),
    (f'{QUERIES}.decoder.layernorm', 'heads/norm', NORM),
    ('class_predictor', 'heads/class_head/dense', LINEAR),
    *((f'{MASKS}.{k}.0', f'heads/mask_head/layer{k}/dense', LINEAR) for k in range(3)),
)

# Buffers, and the norm of a Swin classifier that some files hold.
IGNORED = (
    r'criterion\.empty_weight|.*\.(relative_position_index|num_batches_tracked)'
    rf'|{BACKBONE}\.(swin\.)?layernorm\.(weight|bias)'
).replace('model.pixel', r'model\.pixel')
HUGGING_FACE = {
    family: Layout(
        'Mask2FormerForUniversalSegmentation with a ResNet or Swin backbone',
        rows + PIXEL_DECODER + MASKED_DECODER,
        IGNORED,
    )
    for family, rows in (('resnet', RESNET), ('swin', SWIN))
}


def family_of_names(names: Collection[str]) -> str:
    """The family of the backbone of a model whose weights have these names."""
    return 'swin' if any(name.startswith(f'{BACKBONE}.embeddings.') for name in names) else 'resnet'
