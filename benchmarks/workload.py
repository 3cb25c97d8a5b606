"""The work of simcis_jax: the published network, its train step, and each part on its own.

The plain rows are those of the original Mask2Former, with the network and losses of the peer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import row
from benchmarks.scene import make_scene
from simcis_jax.losses.segmentation import PointSampling, match_targets, segmentation_losses
from simcis_jax.losses.weights import LossWeights
from simcis_jax.methods import NO_METHOD, make_method
from simcis_jax.methods.step import Step
from simcis_jax.model.deformable_attention import DeformableAttention
from simcis_jax.model.mask2former import Mask2Former, normalize
from simcis_jax.model.masked_decoder import decoder_memory
from simcis_jax.model.pixel_decoder import grid_centres
from simcis_jax.port.architecture import PLAIN
from simcis_jax.runtime import parallel
from simcis_jax.settings.keys import OptimizerSettings
from simcis_jax.training.optimizer import make_optimizer
from simcis_jax.training.train_step import make_train_step
from simcis_jax.types import Batch, Predictions, Selection, StageArrays, Targets, TrainState

# A jitted function, its arguments, and whether its first result replaces its first argument.
Work = tuple[Callable, tuple, bool]


class Workload:
    """The model and the inputs of all rows, created on demand."""

    def __init__(self, settings: row.Settings, plain: bool = False):
        self.settings = settings
        self.model = Mask2Former(
            settings.classes,
            num_queries=settings.queries,
            dtype=settings.dtype,
            pixel_decoder_precision=settings.pixel_decoder_precision,
            **(PLAIN if plain else {}),
        )
        self.method = make_method('simcis', bank_size=settings.bank_size)
        self.weights = LossWeights()
        if plain:
            self.method = make_method(NO_METHOD)
            self.weights = LossWeights(classification=2.0, mask=5.0, dice=5.0, no_object=0.1)
        self.sampling = PointSampling(settings.points)
        past = np.arange(settings.classes) < settings.classes // 2
        self.stage = StageArrays(past, ~past, jnp.int32(1000), jnp.float32(1e-4))
        self.batch = self._make_batch()
        self.keys = jax.random.split(jax.random.key(3), settings.batch)

    def rows(self) -> dict[str, Callable[[], Work]]:
        """Row name, see `row.ROWS` -> function that creates the work."""
        makers = {
            'matrix product': self.matrix_product,
            'evaluation forward': self.evaluation,
            'train step': functools.partial(self.train_step, with_teacher=False),
            'train step, teacher + CSL + VQ': functools.partial(self.train_step, with_teacher=True),
            'plain Mask2Former, forward': lambda: self.plain.evaluation(),
            'plain Mask2Former, train step': lambda: self.plain.train_step(with_teacher=False),
            'matching, 10 decoder outputs': self.matching,
            'losses, 10 decoder outputs, forward + backward': self.losses,
            'pseudo-labels': self.pseudo_labels,
            'query bank': self.bank,
        }
        for name, part in {
            'backbone': self.backbone,
            'pixel decoder': self.pixel_decoder,
            'deformable attention, 1 of 6': self.deformable_attention,
            'decoder': self.decoder,
        }.items():
            makers[f'{name}, forward'] = functools.partial(alone, part)
            makers[f'{name}, forward + backward'] = functools.partial(alone, part, gradient=True)
        return makers

    # Whole network

    def matrix_product(self) -> Work:
        """Product of two 4096 x 4096 matrices: the measured peak of the machine."""
        a = jax.random.normal(jax.random.key(0), (4096, 4096), self.settings.dtype)
        return jax.jit(jnp.matmul), (a, a), False

    def evaluation(self) -> Work:
        """Image -> class and mask logits of the last layer."""

        def forward(params, image):
            predictions = self.model.apply({'params': params}, image, self.stage.seen)
            return predictions.class_logits[-1], predictions.mask_logits()

        return jax.jit(forward), (self.params, self.batch.image), False

    def train_step(self, with_teacher: bool) -> Work:
        """One update, as in training."""
        optimizer = OptimizerSettings()
        mesh = parallel.make_mesh(self.settings.batch)
        step = make_train_step(
            self.model,
            self.method,
            mesh,
            weights=self.weights,
            sampling=self.sampling,
            optimizer=optimizer,
        )
        state = TrainState(
            step=jnp.int32(0),
            params=self.params,
            opt_state=make_optimizer(self.params, optimizer).init(self.params),
            memory=self.method.init_memory(self.settings.classes, self.model.hidden_dim),
            key=jax.random.key(1),
            skipped=jnp.int32(0),
        )
        # The state is donated, so the teacher needs a copy.
        teacher = jax.tree.map(jnp.copy, self.params) if with_teacher else None
        arguments = (
            *parallel.put_replicated(mesh, (state, teacher)),
            parallel.put_batch(mesh, self.batch),
            parallel.put_replicated(mesh, self.stage),
        )
        return step, arguments, True

    # Parts of the network: (function, arguments); gradients are with respect to all arguments

    def backbone(self) -> tuple[Callable, tuple]:
        """Image -> feature maps."""
        image = normalize(self.batch.image)
        return lambda p: self.apply(p, lambda m: m.backbone_maps(image)), (
            self.params_of('resnet'),
        )

    def pixel_decoder(self) -> tuple[Callable, tuple]:
        """Backbone maps -> encoded maps and mask features."""
        maps = [self.random_map(*x) for x in ((4, 256), (8, 512), (16, 1024), (32, 2048))]
        params = self.params_of('pixel_decoder')
        return lambda p, x: self.apply(p, lambda m, x: m.pixel_decoder(x), x), (params, maps)

    def deformable_attention(self) -> tuple[Callable, tuple]:
        """One layer on the tokens of all maps."""
        shapes = tuple((self.settings.size // s,) * 2 for s in (32, 16, 8))
        count = sum(h * w for h, w in shapes)
        shape = self.settings.batch, count, self.model.hidden_dim
        tokens = jax.random.normal(jax.random.key(2), shape)
        layer, references = DeformableAttention(self.model.num_heads), grid_centres(shapes)
        init = functools.partial(layer.init, references=references, shapes=shapes)
        params = random_weights(jax.eval_shape(init, jax.random.key(0), tokens, tokens[0]))
        return lambda p, x: layer.apply(p, x, x[0], references, shapes), (params, tokens)

    def decoder(self) -> tuple[Callable, tuple]:
        """Queries, maps and mask features -> class logits, mask embeddings and boxes."""
        maps = [self.random_map(stride, self.model.hidden_dim) for stride in (32, 16, 8, 4)]
        shape = self.settings.batch, self.settings.queries, self.model.hidden_dim
        queries = jax.random.normal(jax.random.key(2), shape)
        boxes = jnp.full((*shape[:2], 4), 0.5)

        def decode(model, queries, maps):
            memory = decoder_memory(maps[:3], model.level_embedding, maps[3])
            return model.decoder(queries, boxes, queries[:, :0], memory)

        params = self.params_of('decoder', 'heads')
        return lambda p, *x: self.apply(p, decode, *x), (params, queries, maps)

    # Parts of the losses

    def matching(self) -> Work:
        """Matches every decoder output with the targets."""
        match = functools.partial(
            match_targets, weights=LossWeights(), num_points=self.sampling.num_points
        )
        return jax.jit(match), (self.random_predictions(), self.batch.targets, self.keys), False

    def losses(self) -> Work:
        """All five loss terms and their gradient with respect to the predictions."""
        match, arguments, _ = self.matching()
        predictions, targets, keys = arguments
        matches = match(*arguments)

        def total(predictions, targets, matches, keys):
            terms = segmentation_losses(predictions, targets, matches, keys, sampling=self.sampling)
            return sum(term.sum() for term in terms.values())

        both = jax.jit(jax.value_and_grad(total, allow_int=True))
        return both, (predictions, targets, matches, keys), False

    def pseudo_labels(self) -> Work:
        """Merges the targets with pseudo-labels of the teacher."""
        step = Step(stage=self.stage, batch=self.batch, teacher=self.random_predictions())
        return jax.jit(self.method.targets), (step,), False

    def bank(self) -> Work:
        """Stores matched queries and samples virtual queries."""
        memory = self.method.init_memory(self.settings.classes, self.model.hidden_dim)
        queries = self.random_predictions().selection.queries
        labels = np.full(queries.shape[:2], -1, np.int32)
        labels[:, : self.settings.targets] = self.batch.targets.labels[:, : self.settings.targets]

        def store_and_sample(memory, queries, labels):
            memory = self.method.update_memory(memory, (queries, labels), jnp.array(True))
            # Only a stage with a teacher samples.
            step = Step(stage=self.stage, memory=memory, teacher=(), key=self.keys[0])
            rows = jnp.arange(len(labels))
            return memory, self.method.virtual_queries(step.replace(rows=rows))

        function = jax.jit(store_and_sample, donate_argnums=0)
        return function, (memory, queries, labels), True

    # Inputs

    @functools.cached_property
    def plain(self) -> Workload:
        """The original Mask2Former at the same size."""
        return Workload(self.settings, plain=True)

    @functools.cached_property
    def params(self) -> Any:
        """Random weights that preserve the scale of activations."""
        image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), image)
        return random_weights(shapes['params'])

    def params_of(self, *names: str) -> Any:
        """Weights of these modules, and the level embedding, which the model always needs."""
        return {name: self.params[name] for name in (*names, 'level_embedding')}

    def apply(self, params: Any, method: Callable, *arguments: Any) -> Any:
        """Applies a method of the model."""
        return self.model.apply({'params': params}, *arguments, method=method)

    def random_map(self, stride: int, width: int) -> jax.Array:
        """A random feature map."""
        side = self.settings.size // stride
        shape = self.settings.batch, side, side, width
        return jax.random.normal(jax.random.key(stride), shape)

    def random_predictions(self) -> Predictions:
        """Random predictions; unlike those of random weights, they differ between queries."""
        settings, width = self.settings, self.model.hidden_dim
        outputs, images = self.model.decoder_layers + 1, settings.batch
        queries = outputs, images, settings.queries
        normal = functools.partial(jax.random.normal, jax.random.key(5))
        return Predictions(
            class_logits=normal((*queries, settings.classes)),
            mask_embeddings=normal((*queries, width)) / width**0.5,
            boxes=jax.nn.sigmoid(normal((*queries, 4))),
            virtual_class_logits=jnp.zeros((outputs, images, 0, settings.classes)),
            mask_features=self.random_map(4, width),
            selection=Selection(
                token_logits=jnp.zeros((images, 0, settings.classes)),
                positions=jnp.zeros(queries[1:], jnp.int32),
                queries=normal((*queries[1:], width)),
            ),
        )

    def _make_batch(self) -> Batch:
        settings, scene = self.settings, make_scene(self.settings)
        labels = np.full(settings.slots, -1, np.int32)
        boxes = np.zeros((settings.slots, 4), np.float32)
        labels[: settings.targets], boxes[: settings.targets] = scene.labels, scene.boxes
        one = scene.segment_map, labels, boxes, np.int32(0)
        targets = Targets(*(jnp.asarray(np.stack([x] * settings.batch)) for x in one))
        return Batch(jnp.asarray(scene.images), targets)


def random_weights(shapes: Any) -> Any:
    """Random weights of these shapes.

    They make deformable attention sample at fractional positions, as after training; the initial
    weights of the network sample at whole pixels.
    """
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if leaf.ndim > 1:
            weights = rng.standard_normal(leaf.shape, np.float32) / np.prod(leaf.shape[:-1]) ** 0.5
            return jnp.asarray(weights)
        return jnp.full(leaf.shape, path[-1].key.endswith(('scale', 'variance')), leaf.dtype)

    return jax.tree.map_with_path(fill, shapes)


def alone(part: Callable[[], tuple[Callable, tuple]], gradient: bool = False) -> Work:
    """A part of the network, with or without the backward pass to its arguments."""
    function, arguments = part()

    def both(*arguments):
        out, pull_back = jax.vjp(function, *arguments)
        return out, pull_back(jax.tree.map(jnp.ones_like, out))

    return jax.jit(both if gradient else function), arguments, False
