"""The PyTorch side: the same work by Mask2Former of Hugging Face transformers.

`benchmarks.speed` starts it as a subprocess of a Python with torch and transformers:
`python -m benchmarks.torch_peer ROW SIDE SETTINGS`. Nothing is downloaded: the ResNet-50 with
frozen batch norm has random weights. float32 products are full float32, as in simcis_jax.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import row
from benchmarks.scene import make_scene

# A function, and the parameters and inputs that need a gradient.
Part = tuple[Callable[[], Any], list[torch.Tensor]]


class Peer:
    """The PyTorch model and the inputs of all rows."""

    def __init__(self, settings: row.Settings, compiled: bool):
        self.settings = settings
        backbone = transformers.ResNetConfig(
            out_features=['stage1', 'stage2', 'stage3', 'stage4'],
            hidden_sizes=[256, 512, 1024, 2048],
        )
        config = transformers.Mask2FormerConfig(
            backbone_config=backbone,
            num_labels=settings.classes,
            num_queries=settings.queries,
            train_num_points=settings.points,
        )
        self.model = transformers.Mask2FormerForUniversalSegmentation(config)
        self.freeze_batch_norms()
        self.scatter_offsets()
        self.call = torch.compile(self.model) if compiled else self.model
        scene = make_scene(settings)
        mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
        images = (torch.tensor(scene.images) - mean) / std
        self.images = images.permute(0, 3, 1, 2).contiguous()
        segments = torch.arange(1, settings.targets + 1)[:, None, None]
        masks = (torch.tensor(scene.segment_map) == segments).float()
        self.masks = [masks] * settings.batch
        self.labels = [torch.tensor(scene.labels).long()] * settings.batch

    def freeze_batch_norms(self) -> None:
        """Freezes the batch norms of the backbone, as in simcis_jax and as published."""
        for module in self.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.requires_grad_(False)
                module.train = lambda mode=True, module=module: module
                module.training = False

    def scatter_offsets(self) -> None:
        """Makes the offsets of deformable attention random, as in simcis_jax."""
        for name, parameter in self.model.named_parameters():
            if name.endswith('sampling_offsets.weight'):
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif name.endswith('sampling_offsets.bias'):
                torch.nn.init.zeros_(parameter)

    def rows(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        """Row name, see `row.ROWS` -> function that creates the work."""
        makers = {
            'matrix product': matrix_product,
            'evaluation forward': self.evaluation,
            'train step': self.train_step,
            'plain Mask2Former, forward': self.evaluation,
            'plain Mask2Former, train step': self.train_step,
            'matching, 10 decoder outputs': self.matching,
            'losses, 10 decoder outputs, forward + backward': self.losses,
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

    def evaluation(self) -> Callable[[], Any]:
        """Image -> class and mask logits."""
        self.model.eval()

        @torch.inference_mode()
        def forward():
            predictions = self.call(self.images)
            return predictions.class_queries_logits, predictions.masks_queries_logits

        return forward

    def train_step(self) -> Callable[[], Any]:
        """One update: losses of all decoder outputs, gradient clipping, AdamW."""
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05, fused=True)

        def step():
            optimizer.zero_grad()
            loss = self.call(self.images, mask_labels=self.masks, class_labels=self.labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 0.01)
            optimizer.step()
            return loss

        return step

    # Parts of the network

    def backbone(self) -> Part:
        """Image -> feature maps."""
        module = self.model.model.pixel_level_module.encoder
        return lambda: module(self.images).feature_maps, parameters_of(module)

    def pixel_decoder(self) -> Part:
        """Backbone maps -> encoded maps and mask features."""
        module = self.model.model.pixel_level_module.decoder
        maps = [self.random_map(*x) for x in ((4, 256), (8, 512), (16, 1024), (32, 2048))]

        def forward():
            found = module(maps)
            return *found.multi_scale_features, found.mask_features

        return forward, [*parameters_of(module), *maps]

    def deformable_attention(self) -> Part:
        """One layer on the tokens of all maps."""
        encoder = self.model.model.pixel_level_module.decoder.encoder
        module, settings = encoder.layers[0].self_attn, self.settings
        shapes = [(settings.size // s,) * 2 for s in (32, 16, 8)]
        tokens = torch.randn(settings.batch, sum(h * w for h, w in shapes), 256).requires_grad_()
        ratios = torch.ones(settings.batch, 3, 2)
        references = encoder.get_reference_points(shapes, ratios, tokens.device)

        def forward():
            found = module(
                tokens,
                encoder_hidden_states=tokens,
                reference_points=references,
                spatial_shapes_list=shapes,
            )
            return found[:1]

        return forward, [*parameters_of(module), tokens]

    def decoder(self) -> Part:
        """Maps and mask features -> class and mask logits of all decoder outputs."""
        module, head = self.model.model.transformer_module, self.model.class_predictor
        *maps, features = [self.random_map(stride, 256) for stride in (32, 16, 8, 4)]

        def forward():
            found = module(maps, features)
            logits = [head(x.transpose(0, 1)) for x in found.intermediate_hidden_states]
            return *logits, *found.masks_queries_logits

        return forward, [*parameters_of(module, head), *maps, features]

    # Parts of the losses

    def matching(self) -> Callable[[], Any]:
        """Matches every decoder output with the targets."""
        masks, classes = self.random_predictions()
        matcher = self.model.criterion.matcher
        return lambda: [
            matcher(m, c, self.masks, self.labels) for m, c in zip(masks, classes, strict=True)
        ]

    def losses(self) -> Callable[[], Any]:
        """All loss terms and their gradient with respect to the logits."""
        indices = self.matching()()
        masks, classes = self.random_predictions()
        criterion = self.model.criterion
        count = criterion.get_num_masks(self.labels, self.images.device)

        def both():
            terms = [
                term
                for m, c, found in zip(masks, classes, indices, strict=True)
                for term in (
                    *criterion.loss_masks(m, self.masks, found, count).values(),
                    *criterion.loss_labels(c, self.labels, found).values(),
                )
            ]
            return torch.autograd.grad(sum(terms), [*masks, *classes])

        return both

    # Inputs

    def random_map(self, stride: int, width: int) -> torch.Tensor:
        """A random feature map."""
        side = self.settings.size // stride
        return torch.randn(self.settings.batch, width, side, side).requires_grad_()

    def random_predictions(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Random mask logits and class logits of ten decoder outputs."""
        settings = self.settings
        side = settings.size // 4
        masks = [torch.randn(settings.batch, settings.queries, side, side) for _ in range(10)]
        classes = [
            torch.randn(settings.batch, settings.queries, settings.classes + 1) for _ in range(10)
        ]
        return [x.requires_grad_() for x in masks], [x.requires_grad_() for x in classes]


def parameters_of(*modules: torch.nn.Module) -> list[torch.Tensor]:
    """The trainable parameters of modules."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def matrix_product() -> Callable[[], Any]:
    """Product of two 4096 x 4096 matrices: the measured peak of the machine."""
    a = torch.randn(4096, 4096)
    return lambda: a @ a


def alone(part: Callable[[], Part], gradient: bool = False) -> Callable[[], Any]:
    """A part of the network, with or without the backward pass to its parameters and inputs."""
    function, leaves = part()
    if not gradient:
        for leaf in leaves:
            leaf.requires_grad_(False)
        return torch.inference_mode()(function)

    def both():
        for leaf in leaves:
            leaf.grad = None
        out = function()
        torch.autograd.backward(out, [torch.ones_like(x) for x in out])

    return both


def main() -> None:
    """Measures one row."""
    name, side, settings = row.read_task()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    device = 'cuda' if on_gpu else 'cpu'
    torch.set_default_device(device)
    dtype = getattr(torch, settings.dtype)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    work = Peer(settings, compiled=side == row.COMPILED).rows()[name]()

    def call():
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            work()
        if on_gpu:
            torch.cuda.synchronize()

    found = row.first_and_warm(call, settings.repeats)
    if on_gpu:
        found['resident_mib'] = torch.cuda.max_memory_allocated() / 2**20
        device = torch.cuda.get_device_name()
    gflop = None
    if side == row.EAGER:  # The counter cannot look into compiled code, which does the same work.
        with FlopCounterMode(display=False) as counter:
            work()
        gflop = counter.get_total_flops() / 1e9
    versions = {'torch': torch.__version__, 'transformers': transformers.__version__}
    row.print_result(row.Measurement(name, side, device, versions, **found, gflop=gflop))


if __name__ == '__main__':
    main()
