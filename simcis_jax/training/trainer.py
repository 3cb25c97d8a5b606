"""The stage loop: trains, evaluates and saves one stage after another."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from simcis_jax.continual.stages import Stage
from simcis_jax.errors import InputError
from simcis_jax.evaluation import results_table
from simcis_jax.evaluation.evaluator import Evaluator
from simcis_jax.port import pretrained
from simcis_jax.runtime import parallel
from simcis_jax.runtime.interruption import StopRequest
from simcis_jax.settings.validated import Settings
from simcis_jax.training import data_checks, inherited_stage, initial_weights, programs, replay
from simcis_jax.training.checkpointing import StageCheckpoints, discard_damaged
from simcis_jax.training.nonfinite import NonfiniteSteps
from simcis_jax.training.optimizer import count_parameters
from simcis_jax.training.stage_data import (
    check_images,
    num_steps_of,
    open_splits,
    stage_arrays,
    training_batches,
)
from simcis_jax.training.stage_evaluation import EvaluationInStage, StageEvaluation
from simcis_jax.training.stage_states import StageStates
from simcis_jax.training.step_loop import StageSteps, StepHooks, run_steps
from simcis_jax.training.step_profile import StepProfile
from simcis_jax.training.workdir import Workdir
from simcis_jax.types import TrainState


class Trainer:
    """Trains and evaluates a run; holds what all stages share: data, model, compiled steps."""

    def __init__(self, settings: Settings, workdir: Workdir):
        self.settings, self.workdir, self.stop = settings, workdir, StopRequest()
        self.pretrained = None  # The model in training.init_from, unless that is a stage.
        training = settings.training
        self.train_source, self.val_source = open_splits(settings.data)
        self.categories = self.train_source.categories
        protocol = settings.protocol
        self.stages = protocol.stages(len(self.categories))
        check_images(self.train_source, self.stages, settings)
        data_checks.check_scorable(self.val_source, settings.evaluation.tasks)
        self.stored_bytes = replay.StoredBytes(self.train_source, workdir.replay_sizes)
        self.image_memories = replay.image_memories(
            self.train_source, self.stages, settings, self.stored_bytes
        )
        self.mesh = parallel.make_mesh(training.batch_size)
        self.model = settings.method.make_model(self.stages, settings.model)
        self.states = StageStates(
            settings, self.model, self.mesh, self.stages, self.train_source, workdir
        )
        make_step = functools.partial(programs.train_step_of, settings, self.model, self.mesh)
        self.train_steps = list(map(make_step, self.stages, self.states.frozen))
        evaluator = Evaluator(
            self.model,
            self.categories,
            settings.evaluation,
            method=settings.method,
            mask_unseen=protocol.mask_unseen,
        )
        self.evaluation = StageEvaluation(
            evaluator, self.val_source, self.stages, settings, workdir
        )

    # One run

    def run(self) -> dict:
        """Trains and evaluates every stage that is not finished yet; returns the results."""
        inherited = self.start()
        if self.pretrained is not None:
            initial_weights.check_not_scored(self.workdir.stage(len(self.stages)))
        state, reports = None, []
        for stage in self.stages:
            report = self.workdir.stage(stage.number).read_report()
            if report is None and stage.number < inherited:
                continue  # An earlier stage of a converted model: there is nothing to evaluate.
            if report is None:
                if stage.number == inherited:
                    state = self.states.finished(stage)
                else:
                    if state is None and stage.index > 0:
                        state = self.states.finished(self.stages[stage.index - 1])
                    state = self.train_stage(stage, state)
                report = self.evaluation.at_end(stage, state)
            else:
                self.workdir.stage(stage.number).remove_counts()  # A kill may have left them.
                state = None
            reports.append(report)
            results = self.write_results(reports)
        return results

    def evaluate(self) -> dict:
        """Evaluates the newest finished stage again without training; returns the results.

        In a new work directory, that is the pretrained model of `training.init_from`, if it is one.

        Raises:
            InputError: no stage is finished.
        """
        self.start()
        begun = any(self.workdir.stage(stage.number).newest_checkpoint for stage in self.stages)
        if self.pretrained is not None and not begun:
            stage = self.stages[-1]
            initial_weights.save_as_stage(
                self.workdir.stage(stage.number),
                self.pretrained,
                self.categories,
                jax.eval_shape(self.states.initialize)[0],
            )
            return self.write_results([self.evaluation.at_end(stage, self.states.finished(stage))])
        folders = [self.workdir.stage(stage.number) for stage in self.stages]
        reports = {folder.number: folder.read_report() for folder in folders}
        finished = [folder.number for folder in folders if folder.is_finished]
        if not finished:
            raise InputError(
                f'{self.workdir.root} has no finished stage to evaluate; train one, or set '
                'training.init_from.'
            )
        stage = self.stages[finished[-1] - 1]
        reports[stage.number] = self.evaluation.at_end(stage, self.states.finished(stage))
        return self.write_results([report for report in reports.values() if report])

    def start(self) -> int:
        """Checks the data and the config, claims the work directory, copies inherited stages.

        Returns:
            The number of the stage in `training.init_from`, which is the last inherited one; or 0.

        Raises:
            InputError: the network does not fit the images or the checkpoint to start from; an
                image is missing or has another size than listed; the folder holds another run.
        """
        data_checks.check_files((self.train_source, self.val_source))
        warnings = data_checks.absent_classes(self.train_source, self.val_source)
        warnings += data_checks.large_images(
            self.val_source, self.settings.model['num_queries'], len(self.settings.evaluation.tasks)
        )
        for line in warnings:
            print(line, flush=True)
        training = self.settings.training
        inherited = None
        if training.init_from and pretrained.is_pretrained(training.init_from):
            self.pretrained = pretrained.read(training.init_from)
            initial_weights.check_network(self.pretrained, self.settings.model)
        elif training.init_from:
            inherited = inherited_stage.finished_stage(
                training.init_from, self.stages, self.categories, self.states.initialize
            )
            inherited_stage.check_network(inherited, self.settings, self.stages)
        else:
            params, _ = jax.eval_shape(self.states.initialize)
            if training.init_backbone:
                initial_weights.with_backbone(params, training.init_backbone)
        self.workdir.claim(self.categories)
        if self.workdir.writes:
            self.stored_bytes.save()
        if inherited is not None:
            inherited_stage.inherit(
                self.workdir, inherited, len(self.categories), self.states.initialize
            )
        parallel.wait_for_all('workdir')
        return inherited.number if inherited else 0

    def write_results(self, reports: Sequence[Mapping]) -> dict:
        """Writes and prints the results table of these stages; returns the results."""
        results = results_table.results(reports)
        if parallel.is_main():
            self.workdir.write_results(results)
            print(results_table.format_table(results), flush=True)
        return results

    # One stage

    def train_stage(self, stage: Stage, previous: TrainState | None) -> TrainState:
        """Trains a stage, resuming from its newest checkpoint if there is one.

        Takes and returns the parameters and the memory of a finished stage; other fields are None.
        """
        memory = self.image_memories[stage.index]
        data = training_batches(self.train_source, stage, self.settings, memory)
        arrays = stage_arrays(stage, len(self.categories), self.settings)
        num_steps = num_steps_of(stage, self.settings)
        arrays = parallel.put_replicated(self.mesh, arrays)
        names = ', '.join(self.categories.names[label] for label in stage.current)
        print(f'stage {stage.number} of {len(self.stages)}: {names}', flush=True)
        if self.states.frozen[stage.index]:
            params, _ = jax.eval_shape(self.states.initialize)
            trained, total = count_parameters(params, self.states.frozen[stage.index])
            print(f'stage {stage.number} trains {trained:,} of {total:,} parameters', flush=True)
        method = self.settings.method
        teacher = previous.params if previous is not None and method.uses_teacher else None
        train_step = self.train_steps[stage.index]

        folder = self.workdir.stage(stage.number)
        queries = {} if previous is None else method.replayed(previous.memory)
        if folder.writes and (memory or queries):
            replayed = replay.record(folder, self.train_source, memory, queries)
            print(f'stage {stage.number} replays {replay.summary(replayed)}', flush=True)
        damaged = discard_damaged(folder.checkpoints) if folder.writes else []
        parallel.wait_for_all('checkpoints')
        for line in damaged:
            print(line, flush=True)
        with StageCheckpoints(folder.checkpoints) as checkpoints, contextlib.closing(data):
            if checkpoints.latest_step is not None:
                shapes = jax.eval_shape(
                    lambda: self.states.with_optimizer(stage, self.states.new(stage, previous))
                )
                state = checkpoints.restore(parallel.replicated_like(self.mesh, shapes))
                print(f'continuing stage {stage.number} from step {int(state.step)}', flush=True)
            else:
                if damaged:
                    print(f'stage {stage.number} has no checkpoint left: restarting it from step 0')
                # The stage begins with these parameters and its first step donates them.
                teacher = jax.tree.map(jnp.copy, teacher)
                state = self.states.begin(stage, previous, teacher, arrays, self.pretrained)
                if teacher is not None and method.uses_statistics:
                    checkpoints.save(0, state)  # Gathering the statistics takes long.
            training = self.settings.training
            first = int(state.step)
            records = self.workdir.records(stage.number, first)
            parallel.wait_for_all('records')
            with (
                self.workdir.metrics_log(stage.number, first) as log,
                self.stop,
                StepProfile(
                    stage.number, training.profile_steps, folder.root / 'profile'
                ) as profile,
            ):
                steps = StageSteps(
                    stage.number,
                    num_steps,
                    steps_after=sum(
                        num_steps_of(later, self.settings) for later in self.stages[stage.number :]
                    ),
                    update=lambda state, batch: train_step(
                        state, teacher, parallel.put_batch(self.mesh, batch), arrays
                    ),
                    finish=lambda state: parallel.put_replicated(
                        self.mesh, method.end_stage(state, arrays)
                    ),
                )
                hooks = StepHooks(
                    checkpoints,
                    EvaluationInStage(self.evaluation, stage, num_steps, log, records),
                    log,
                    profile,
                    NonfiniteSteps(
                        stage.number, training.skip_nonfinite, data, self.train_source, folder.root
                    ),
                    self.stop,
                )
                state = run_steps(steps, state, data, hooks, training)
        # The optimizer state would stay on the device through the next stage.
        return state.replace(step=None, opt_state=None, key=None, skipped=None)
