"""Two workers on the CPU compute what one does: inputs, batch-norm, losses, counts, decisions.

The two processes are started once (`workers`), run every job below and leave what they found.
"""

import copy
import math
import pickle
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from training_helpers import (
    CPU,
    RUNTIME,
    StopAfter,
    assert_equal_states,
    batches,
    final_state,
    image_data,
    join_group,
    leave_group,
    losses,
    mapping,
    of_workers,
    only,
    rows,
    student_spec,
    teacher_spec,
)

from trainers.checkpoint import dump_weights, weights_digest
from trainers.control import Control
from trainers.distributed import GhostBatchNorm2d, SyncBatchNorm2d, World, convert_batch_norm
from trainers.errors import NonFiniteLossError, UnsuitableError
from trainers.evaluate import TestSet, student_heads
from trainers.events import Checkpoint, Finished, Snapshot
from trainers.spec import AUGMENTATIONS, AdamW, Augmentation, Backbone, Request
from trainers.student import build_engine, train_student
from trainers.teacher import train_teacher

pytestmark = pytest.mark.timeout(180)

SIZE = 2
DATA = image_data(num_test=101)
SEARCHES = {None: DATA, "adaptive": image_data(num_test=1001)}
AUGMENTED = ("none", "std", "mixup", "cutmix")
RUNS = {
    "A mixup": student_spec("A", augmentation=AUGMENTATIONS["mixup"]),
    "B std": student_spec("B"),
    "C cutmix": student_spec("C", augmentation=AUGMENTATIONS["cutmix"]),
    "A ghost": student_spec("A", norm_batch=5),
}


# -- jobs: functions of the world, run by every worker and, as a world of one, here ----------------


def inputs(world, folder):
    found = {}
    for name in AUGMENTED:
        source = batches(DATA, AUGMENTATIONS[name], world=world)
        for step in (0, 3, 64):
            found[name, step] = source.batch(step)
    return found


def trained(world, folder):
    """Losses of 20 steps and the weights they end with."""
    found = {}
    for name, spec in RUNS.items():
        given = mapping(spec.strategy, folder / f"rank-{world.rank}", DATA)
        engine = build_engine(spec, DATA, RUNTIME, world, **given)
        values = losses(engine, 20)
        found[name] = {"losses": values, "means": engine.means()}
        found[name]["model"] = dict(engine.model.state_dict())
    return found


def norm_inputs(dtype):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 4, 4, generator=generator, dtype=dtype) * 3 + 50
    weights = torch.randn(8, 3, 4, 4, generator=generator, dtype=dtype)
    return images, weights


def norms(world, folder, kind=None, group=None):
    """Output, gradients and statistics of a batch-norm of which each worker sees a part."""
    kind = kind or SyncBatchNorm2d
    norm = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -0.5]))
        norm.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
        norm.running_mean.copy_(torch.tensor([0.0, 40.0, 1.0]))
    norm.__class__ = kind
    if group:
        norm.group_size = group
    images, weights = norm_inputs(torch.float64)
    mine = world.rows(8)
    part = images[mine].clone().requires_grad_()
    output = norm(part)
    (output.square() * weights[mine]).sum().backward()
    return {
        "output": output.detach(),
        "input gradient": part.grad,
        "weight gradient": world.sum(norm.weight.grad),
        "bias gradient": world.sum(norm.bias.grad),
        "statistics": dict(norm.named_buffers()),
    }


def ghosts(world, folder):
    return norms(world, folder, GhostBatchNorm2d, group=2)


def half_precision(world, folder):
    norm = SyncBatchNorm2d(3)
    output = norm(norm_inputs(torch.bfloat16)[0][world.rows(8)])
    return output.dtype, norm.running_mean


def counts(world, folder):
    found = {}
    for total in (101, 100, 1):
        data = image_data(num_test=total)
        for part in (None, 30):
            engine = build_engine(student_spec("A"), data, RUNTIME, world)
            tests = TestSet(
                data.test_images, data.test_labels, data.info.mean, data.info.std,
                world=world, precision="fp32", part=part,
            )  # fmt: skip
            found[total, part] = (tests.count, tests.correct(engine.model, student_heads))
    return found


def decisions(world, folder):
    """Rank 0's flag and clock count, and everyone hears of them at the same step."""
    control = Control(StopAfter(3 if world.rank == 0 else 1), 1e9, world, CPU)
    asked = [control.ask(step) for step in range(1, 41)]
    hurried = Control(None, 0.0 if world.rank == 0 else 1e9, world, CPU)
    return asked, [hurried.ask(step) for step in range(1, 21)]


def student_run(world, folder, state=None, stop=None):
    spec = student_spec("A", augmentation=AUGMENTATIONS["cutmix"])
    return list(train_student(spec, DATA, Request(horizon=25), RUNTIME, state=state, stop=stop))


def interrupted(world, folder):
    """A student stopped by rank 0 alone, its state handed to both, and one left alone."""
    stopped = student_run(world, folder, stop=StopAfter(1) if world.rank == 0 else None)
    shared = [final_state(stopped) or None]
    dist.broadcast_object_list(shared, src=0)
    return {
        "stopped": stopped,
        "resumed": student_run(world, folder, state=shared[0]),
        "whole": student_run(world, folder),
    }


def teacher_run(world, folder):
    spec = teacher_spec(
        backbone=Backbone(name="resnet18", width=4), optimizer=AdamW(lr=1e-2, weight_decay=0.01)
    )
    found = {}
    for screen, data in SEARCHES.items():
        request = Request(horizon=60, presets=(50.0,), screen=screen)
        found[screen] = list(train_teacher(spec, data, request, RUNTIME))
    return found


def bad_loss(world, folder):
    """The loss is NaN on the last worker alone, at step 3."""
    engine = build_engine(student_spec("A", augmentation=Augmentation()), DATA, RUNTIME, world)
    objective = engine.objective

    def bad(model, batch):
        loss, means = objective(model, batch)
        here = world.rank == world.size - 1 and engine.step == 2
        return (loss + math.nan if here else loss), means

    engine.objective = bad
    for _ in range(6):
        engine.update()
    try:
        engine.means()
    except NonFiniteLossError as error:
        return error.step
    return None


JOBS = (
    inputs, trained, norms, ghosts, half_precision, counts, decisions, interrupted, teacher_run,
    bad_loss,
)  # fmt: skip


# -- the two workers -------------------------------------------------------------------------------


def work(rank, folder):
    warnings.simplefilter("error")
    join_group(rank, folder / "rendezvous", SIZE)
    (folder / f"rank-{rank}").mkdir()
    world = World.current()
    assert world == World(rank, SIZE)
    found = {job.__name__: job(world, folder) for job in JOBS}
    (folder / f"rank-{rank}.pickle").write_bytes(pickle.dumps(found))
    leave_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """What each worker found, by job."""
    return of_workers(work, tmp_path_factory.mktemp("workers"), SIZE)


@pytest.fixture
def alone(tmp_path):
    """Runs a job as a world of one."""
    (tmp_path / "rank-0").mkdir()
    torch.set_num_threads(1)
    return lambda job: job(World(), tmp_path)


# -- inputs ----------------------------------------------------------------------------------------


def test_workers_see_the_rows_one_worker_would(workers, alone):
    for key, batch in alone(inputs).items():
        parts = [found["inputs"][key] for found in workers]
        for field in ("views", "samples_N", "partners_N", "lam_N"):
            expected = getattr(batch, field)
            if expected is None:
                assert all(getattr(part, field) is None for part in parts)
            else:
                together = torch.cat([getattr(part, field) for part in parts])
                assert torch.equal(together, expected), (key, field)


# -- batch-norm ------------------------------------------------------------------------------------


def compare_norms(workers, job, expected, exact=1e-12):
    for name in ("output", "input gradient"):
        together = torch.cat([found[job][name] for found in workers])
        torch.testing.assert_close(together, expected[name], rtol=exact, atol=exact, msg=name)
    for found in workers:
        for name in ("weight gradient", "bias gradient", "statistics"):
            torch.testing.assert_close(found[job][name], expected[name], rtol=exact, atol=exact)


def test_synchronised_batch_norm_is_batch_norm_of_the_whole_batch(workers, alone):
    expected = alone(lambda world, folder: norms(world, folder, nn.BatchNorm2d))
    compare_norms(workers, "norms", expected)


def chunks(group):
    """One nn.BatchNorm2d a group: same start, statistics averaged."""
    images, weights = norm_inputs(torch.float64)
    outputs, statistics, leaf = [], [], images.clone().requires_grad_()
    original = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        original.weight.copy_(torch.tensor([1.0, 2.0, -0.5]))
        original.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
        original.running_mean.copy_(torch.tensor([0.0, 40.0, 1.0]))
    for part in leaf.split(group):
        norm = nn.BatchNorm2d(3).double()
        norm.load_state_dict(copy.deepcopy(original.state_dict()))
        norm.weight, norm.bias = original.weight, original.bias
        outputs.append(norm(part))
        statistics.append(dict(norm.named_buffers()))
    output = torch.cat(outputs)
    (output.square() * weights).sum().backward()
    return {
        "output": output.detach(),
        "input gradient": leaf.grad,
        "weight gradient": original.weight.grad,
        "bias gradient": original.bias.grad,
        "statistics": {
            "running_mean": torch.stack([s["running_mean"] for s in statistics]).mean(0),
            "running_var": torch.stack([s["running_var"] for s in statistics]).mean(0),
            "num_batches_tracked": torch.tensor(1),
        },
    }


def test_ghost_batch_norm_is_a_batch_norm_per_group(workers, alone):
    expected = chunks(2)
    compare_norms(workers, "ghosts", expected)
    compare_norms([{"ghosts": alone(ghosts)}], "ghosts", expected)


def test_synchronised_batch_norm_in_half_precision_keeps_float32_statistics(workers):
    expected = nn.BatchNorm2d(3)
    expected(norm_inputs(torch.bfloat16)[0].float())
    for found in workers:
        dtype, mean = found["half_precision"]
        assert dtype == torch.bfloat16
        torch.testing.assert_close(mean, expected.running_mean)


def test_which_norms_are_converted():
    def kinds(size, norm_batch):
        model = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(2)), nn.ReLU())
        before = model.state_dict()
        convert_batch_norm(model, global_batch=8, norm_batch=norm_batch, world=World(0, size))
        assert model.state_dict().keys() == before.keys()
        return [type(module) for module in model.modules() if isinstance(module, nn.BatchNorm2d)]

    assert kinds(1, None) == [nn.BatchNorm2d] * 2
    assert kinds(2, None) == [SyncBatchNorm2d] * 2
    assert kinds(1, 4) == kinds(2, 4) == [GhostBatchNorm2d] * 2
    with pytest.raises(UnsuitableError, match="norm_batch 8"):
        kinds(2, 8)
    with pytest.raises(UnsuitableError, match="norm_batch 3"):
        kinds(1, 3)


def test_a_batch_that_workers_cannot_share_is_refused():
    assert [World(rank, 4).rows(8) for rank in range(4)] == [
        slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8),
    ]  # fmt: skip
    with pytest.raises(UnsuitableError, match="10 is not divisible by 4"):
        World(0, 4).rows(10)


# -- training --------------------------------------------------------------------------------------


def test_twenty_steps_have_the_losses_of_one_worker(workers, alone):
    expected = alone(trained)
    for name, run in expected.items():
        parts = [found["trained"][name] for found in workers]
        pairs = zip(*(part["losses"] for part in parts), strict=True)
        together = [sum(values) / SIZE for values in pairs]
        assert together == pytest.approx(run["losses"], rel=1e-4), name
        for part in parts:
            assert part["means"] == pytest.approx(run["means"], rel=1e-4)
        assert_equal_states(parts[0]["model"], parts[1]["model"])  # statistics included


def test_a_loss_that_is_bad_on_one_worker_stops_both_at_the_same_step(workers, alone):
    assert [found["bad_loss"] for found in workers] == [3, 3]
    assert alone(bad_loss) == 3


def test_workers_decide_alike(workers):
    asked, hurried = zip(*(found["decisions"] for found in workers), strict=True)
    assert asked[0] == asked[1]
    assert [step for step, (_, stop) in enumerate(asked[0], 1) if stop] == [30, 40]
    assert all(checkpoint for checkpoint, stop in asked[0] if stop)
    assert hurried[0] == hurried[1]
    assert [step for step, (due, _) in enumerate(hurried[0], 1) if due] == [10, 20]


def test_workers_stop_at_one_step_and_resume_bit_for_bit(workers):
    first, second = (found["interrupted"] for found in workers)
    for part in (first, second):
        assert part["stopped"][-1] == Finished(reason="stopped", step=10)
        assert part["whole"][-1] == Finished(reason="done", step=25)
        assert rows(part["stopped"]) + rows(part["resumed"]) == rows(part["whole"])
    assert rows(first["whole"]) == rows(second["whole"])
    assert_equal_states(final_state(first["resumed"]), final_state(first["whole"]))
    assert [event.state for event in only(Checkpoint, second["whole"])] == [{}]  # rank 0 writes


def test_a_checkpoint_of_two_workers_is_one_of_one_worker(workers, alone):
    """The number of workers is no part of a state: one worker takes it up."""
    stopped = workers[0]["interrupted"]["stopped"]
    events = alone(lambda world, folder: student_run(world, folder, state=final_state(stopped)))
    row, expected = rows(events)[-1], rows(workers[0]["interrupted"]["whole"])[-1]
    assert row["train_kl"] == pytest.approx(expected["train_kl"], rel=1e-5)


def test_evaluation_counts_each_sample_once(workers, alone):
    for key, expected in alone(counts).items():
        for found in workers:
            assert found["counts"][key] == expected, key
        total, part = key
        assert expected[0] == min(total, part or total)


@pytest.mark.parametrize("screen", SEARCHES)
def test_both_workers_harvest_the_same_snapshots(workers, alone, screen):
    def found(events):
        return [
            (s.preset, s.step, s.accuracy, s.alpha, weights_digest(dump_weights(s.weights)))
            for s in only(Snapshot, events[screen])
        ]

    first, second = (found(worker["teacher_run"]) for worker in workers)
    assert first == second
    assert len(first) >= 4
    assert all(abs(accuracy - preset) <= 1 for preset, _, accuracy, *_ in first)
    one = found(alone(teacher_run))
    assert [preset for preset, *_ in one] == [preset for preset, *_ in first]
