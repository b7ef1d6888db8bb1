"""The step benchmark: its arithmetic, its contenders, and a tiny run. No test looks at a time."""

import dataclasses
import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import step
from baselines.floor import Floor, capture
from baselines.images import load_images
from baselines.lineup import LineUp
from baselines.ours import LEAD_IN, OurStep
from baselines.setting import TEMPERATURE, Setting
from rounds import Turn, play, spread
from step_measures import measures, per_step
from step_profile import summary, write_summaries

CPU = torch.device("cpu")
TINY = ["--width", "2", "--batch", "8", "--steps", "2", "--rounds", "2", "--images", "100",
        "--test-images", "20", "--device", "cpu"]  # fmt: skip


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not installed: extra bench"
    )


def setting(**changes):
    values = {
        "device": CPU, "precision": "fp32", "width": 2, "batch": 8, "augmentation": "std",
        "compile": False, "data": load_images([], train=100, test=20),
    }  # fmt: skip
    return Setting(**{**values, **changes})


class Recorded:
    """A contender that takes as long as it is told."""

    def __init__(self, name, wall_s, log):
        self.name, self.wall_s, self.log = name, wall_s, log

    def turn(self, steps):
        self.log.append(self.name)
        return Turn(self.wall_s, 2 * self.wall_s, 10 * steps)

    def close(self):
        pass


# -- arithmetic ----------------------------------------------------------------------------------


def test_spread_of_values():
    found = spread([4.0, 1.0, 2.0, 3.0, 10.0])
    assert (found.median, found.quartiles, found.least, found.greatest) == (3, (2, 4), 1, 10)
    assert found.as_json()["n"] == 5
    assert spread([2.0]).quartiles == (2.0, 2.0)


def test_rounds_rotate_and_the_first_does_not_count():
    log, told = [], []
    contenders = [Recorded(name, 1.0, log) for name in "abc"]
    found = list(play(contenders, rounds=3, steps=2, told=lambda number, _: told.append(number)))
    assert "".join(log) == "abc" + "bca" + "cab" + "abc"
    assert told == [0, 1, 2, 3]
    assert len(found) == 3
    assert found[0]["b"] == Turn(1.0, 2.0, 20)


def rounds_of(*rows):
    return [{name: Turn(wall_s, wall_s / 2, 128) for name, wall_s in row.items()} for row in rows]


def test_ratios_are_taken_within_a_round():
    rounds = rounds_of({"A": 1.0, "floor": 1.0, "B": 2.0}, {"A": 9.0, "floor": 3.0, "B": 9.0})
    found = {row.name: row for row in measures(rounds, on_cpu=True)}
    assert found["step of A / floor"].spread.median == 2  # of 1 and 3
    assert found["step of A / floor"].pooled == 10 / 4
    assert found["step of A / floor"].on_cpu.median == 2
    assert found["step of B / A"].spread.median == 1.5
    assert found["images/s of A"].spread.greatest == 128
    assert not any("Lightning" in name or "C" in name for name in found)


def test_rates_against_others_are_inverse_times():
    rounds = rounds_of({"A": 1.0, "B": 2.0, "Lightning": 8.0, "torchdistill": 10.0})
    found = {row.name: row.spread.median for row in measures(rounds, on_cpu=False)}
    assert found["images/s of A / Lightning"] == 8
    assert found["images/s of B / torchdistill"] == 5


def test_validation_share_is_that_of_an_epoch_of_cifar10():
    """Ten evaluations of 10,000 images against 390 steps of 128."""
    rounds = [{"A": Turn(3.0, 3.0, 1000), "evaluation": Turn(1.0, 1.0, 1000)}]
    share = measures(rounds, on_cpu=False)[-1]
    assert share.spread.median == pytest.approx(100_000 / (100_000 + 3 * 49_920))


def test_milliseconds_a_step():
    found = per_step(rounds_of({"A": 0.5}, {"A": 0.7}), 256)
    assert found["A"]["rounds_ms"] == [1000.0, 1400.0]
    assert found["A"]["images_per_s"] == pytest.approx(256 / 1.2, abs=0.1)
    assert found["A"]["cpu_ms"] == 600


# -- contenders ----------------------------------------------------------------------------------


def parquet(folder, name, count):
    def picture(value):
        file = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(file, "PNG")
        return file.getvalue()

    table = pa.table({"image": [picture(i) for i in range(count)], "label": list(range(count))})
    pq.write_table(table, folder / name)
    return folder / name


def test_images_of_parquet_files_or_their_folder(tmp_path):
    train = parquet(tmp_path, "cifar10_train-00000-of-00002.parquet", 5)
    test = parquet(tmp_path, "cifar10_test.parquet", 4)
    for files in ([train, test], [tmp_path]):
        data = load_images(files, train=3, test=100)
        assert data.train_images[:, 0, 0, 0].tolist() == data.train_labels.tolist() == [0, 1, 2]
        assert len(data.test_images) == len(data.test_labels) == 4
    with pytest.raises(SystemExit, match="test split"):
        load_images([train], train=3, test=3)


@pytest.mark.parametrize("strategy", ["A", "B", "C"])
def test_our_step_is_the_engine_s(strategy):
    ours = OurStep(setting(), strategy)
    turn = ours.turn(3)
    assert ours.engine.step == LEAD_IN + 3
    assert turn.images == 24
    assert all(np.isfinite(value) for value in ours.engine.means().values())
    ours.close()


def test_who_cannot_run_is_left_out_and_why_is_said():
    said = []
    lined = LineUp(setting(augmentation="mixup"), 1, said.append)
    lined.add_ours(["A"])
    lined.add_baselines(["lightning", "torchdistill"], workers=None)
    assert [contender.name for contender in lined.contenders] == ["floor", "A", "evaluation"]
    assert set(lined.left_out) == {"Lightning", "torchdistill"}
    assert "Lightning is left out: " + lined.left_out["Lightning"] in said
    lined.close()


def test_the_floor_takes_its_layout():
    lined = LineUp(setting(), 1, print)
    lined.add_ours([], nchw=True)
    assert [contender.name for contender in lined.contenders] == ["floor", "floor, NCHW"]
    (row,) = measures([{one.name: one.turn(1) for one in lined.contenders}], on_cpu=True)
    assert row.name == "step of floor, NCHW / floor"


def first_batch(at):
    images_NCHW = torch.randn(at.batch, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return images_NCHW, torch.arange(at.batch) % 10


@needs("lightning")
def test_lightning_minimises_the_decoupled_loss():
    from baselines.lightning_stack import DecoupledModule

    at = setting()
    images_NCHW, labels = first_batch(at)
    module = DecoupledModule(at)
    with pytest.warns(UserWarning, match=r"self\.log"):  # there is no trainer
        loss = module.training_step([images_NCHW, labels], 0)
    heads = at.student()(images_NCHW)
    torch.testing.assert_close(loss, sum(F.cross_entropy(head, labels) for head in heads))


@needs("torchdistill")
def test_torchdistill_minimises_strategy_b_s_losses_and_leaves_the_teacher():
    from baselines.torchdistill_stack import TorchdistillStep

    at = setting()
    images_NCHW, labels = first_batch(at)
    box = TorchdistillStep(at, workers=0)._box(1)
    loss = box.forward_process(images_NCHW, labels, {})
    loss.backward()
    teacher, student = at.teacher(), at.student()
    projection_NC, classifier_NC = student(images_NCHW)
    kl = F.kl_div(
        F.log_softmax(projection_NC / TEMPERATURE, 1),
        F.softmax(teacher(images_NCHW) / TEMPERATURE, 1),
        reduction="batchmean",
    )
    torch.testing.assert_close(loss, kl + F.cross_entropy(classifier_NC, labels))
    assert all(parameter.grad is None for parameter in box.teacher_model.parameters())


def test_no_part_needs_the_orchestrator():
    """It runs where only torch, Arrow and rich are."""
    folder = Path(step.__file__).parent
    names = ("accelerator", "machine", "rounds", "step", "step_measures", "step_profile")
    for path in [*(folder / f"{name}.py" for name in names), *folder.glob("baselines/*.py")]:
        assert "orchestrator" not in path.read_text(), path


# -- whole runs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tiny_run_of_ours(tmp_path):
    out, profile = tmp_path / "step.json", tmp_path / "profile.json"
    files = ["--json", str(out), "--profile", str(profile)]
    assert step.main([*TINY, "--precision", "fp32", "bf16", "--baselines", *files]) == 0
    found = json.loads(out.read_text())
    assert [each["precision"] for each in found["results"]] == ["fp32", "bf16"]
    for each in found["results"]:
        assert set(each["contenders"]) == {"floor", "A", "B", "C", "evaluation"}
        assert len(each["contenders"]["A"]["rounds_ms"]) == each["n"] == 2
        assert len(each["measures"]) == 5
        assert each["left_out"] == {}
    profiles = json.loads(profile.read_text())
    assert set(profiles) == {
        f"{n}, {p}" for n in ("floor", "A", "B", "C") for p in ("fp32", "bf16")
    }


@needs("lightning")
@needs("torchdistill")
def test_a_tiny_run_of_the_baselines(tmp_path):
    out = tmp_path / "step.json"
    assert step.main([*TINY, "--strategies", "A", "B", "--workers", "0", "--json", str(out)]) == 0
    (found,) = json.loads(out.read_text())["results"]
    assert found["left_out"] == {}
    assert {"Lightning", "torchdistill"} <= set(found["contenders"])


@needs("lightning")
@pytest.mark.slow
def test_numbers_of_workers_are_tried(tmp_path):
    out = tmp_path / "step.json"
    options = ["--strategies", "A", "--baselines", "lightning", "--json", str(out)]
    assert step.main([*TINY, *options]) == 0
    (found,) = json.loads(out.read_text())["results"]
    assert found["left_out"] == {}
    assert "0" in found["workers"]["lightning_images_per_s"]


def test_profile_as_text(tmp_path):
    floor = Floor(setting(), captured=False)
    path = tmp_path / "profile.txt"
    write_summaries(path, {"floor": summary(floor.run, 2, CPU)})
    text = path.read_text()
    assert text.startswith("floor: ")
    assert "aten::" in text


@pytest.mark.gpu
def test_a_captured_step_replays_whole_steps():
    device = torch.device("cuda")
    total = torch.zeros((), device=device)
    replay = capture(lambda: total.add_(1), device)
    for _ in range(5):
        replay()
    assert total.item() == 3 + 5  # the warm-up's; a capture itself runs nothing


@pytest.mark.gpu
def test_a_captured_floor_keeps_what_it_replays_over():
    """Else others are built in its memory, and every replay trains them."""
    on_gpu = dataclasses.replace(setting(), device=torch.device("cuda"))
    before = torch.cuda.memory_allocated()
    floor = Floor(on_gpu, captured=True)
    weights = sum(p.numel() * p.element_size() for p in on_gpu.student().parameters())
    assert torch.cuda.memory_allocated() - before >= 3 * weights  # with AdamW's moments
    floor.close()


@pytest.mark.gpu
def test_a_tiny_run_on_a_gpu(tmp_path):
    out = tmp_path / "step.json"
    assert step.main([*TINY, "--device", "cuda", "--workers", "2", "--json", str(out)]) == 0
    (found,) = json.loads(out.read_text())["results"]
    assert {"floor", "floor, eager", "A", "B", "C"} <= set(found["contenders"])
    assert found["device_before"]["name"] == torch.cuda.get_device_name()
