"""Plans: hours of the published run, memory as torch reports it, and the arithmetic in between."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from tests.conftest import make_record, random_tiles, tiny_chat
from vitp.core.errors import ConfigError
from vitp.data.mixture import Mixture, MixtureEntry
from vitp.data.packing import pack
from vitp.data.record_set import ListRecords
from vitp.models.flops import vision_flops
from vitp.models.language import micro_qwen2
from vitp.models.token_runs import token_runs
from vitp.models.vision import VisionSettings, VisionTower
from vitp.models.vlm import VisionLanguageModel, VLMSettings
from vitp.models.vrl import VRLSettings
from vitp.objectives.settings import ModelSettings
from vitp.objectives.vitp import ViTPObjective
from vitp.objectives.vlm_flops import vlm_forward_flops
from vitp.planning.devices import DEVICES, machine_of
from vitp.planning.finetune import plan_finetune
from vitp.planning.memory import BatchLoad, step_memory
from vitp.planning.model import INTERNVL_1B, INTERNVL_VOCABULARY, model_shape, planned_model, vlm_shape
from vitp.planning.plan import RunShape, micro_batch, plan_pretraining, run_shape
from vitp.planning.samples import (
    AssumedSet,
    SampleSize,
    TypicalRecord,
    assumed_samples,
    estimated_tokens,
    measured_samples,
)
from vitp.recipes.catalogue import FINETUNING, PRETRAINING
from vitp.recipes.paper.dry_run import small_finetune
from vitp.recipes.paper.tables import PRETRAINING_FACTS as FACTS
from vitp.recipes.paper.tables import REMOTE_SENSING
from vitp.recipes.paper.typical_sizes import TYPICAL
from vitp.tasks.base import TaskModel
from vitp.tasks.build import build_model


@pytest.fixture(scope="module")
def internvl():
    return model_shape(INTERNVL_1B, INTERNVL_VOCABULARY)


def test_the_papers_model_has_its_published_size(internvl) -> None:
    assert internvl.parameters["vision"] == pytest.approx(304e6, rel=0.005)
    # Qwen2.5-0.5B has 494 M; the published checkpoint has 136 M more in an output layer of its own.
    assert internvl.parameters["language"] == pytest.approx(630e6, rel=0.005)
    assert internvl.total_parameters == pytest.approx(938e6, rel=0.005)
    assert internvl.image_tokens == 256 and internvl.tile == 448 and internvl.layer_scale
    sample = [SampleSize(tiles=1, text=0, supervised=0)]
    run = RunShape(1, 1, 1, True, VRLSettings(ratio=0.0), False)
    flops = micro_batch(internvl, run, sample, np.random.default_rng(0)).flops
    assert flops["vision"] / 1e12 == pytest.approx(0.73, abs=0.01)


def samples(count: int = 1500) -> list[SampleSize]:
    sets = [
        AssumedSet(1000 * one.thousands * one.rate, TYPICAL[one.name], one.max_tiles or FACTS.max_tiles)
        for one in REMOTE_SENSING
    ]
    return assumed_samples(sets, 448, count)


def test_the_published_run_takes_about_its_published_hours(internvl) -> None:
    """23 hours on eight A40, with padding, without gain from dropping, with checkpointing."""
    config = PRETRAINING["remote_sensing"].make(as_published=True)
    plan = plan_pretraining(
        internvl, run_shape(config, pads_dropped=True), samples(), machine_of(f"{FACTS.gpu}:{FACTS.gpus}")
    )
    assert FACTS.hours / 1.5 < plan.hours < FACTS.hours * 1.5
    assert plan.fits and plan.kept_tokens == pytest.approx(plan.tokens, rel=0.1)
    assert plan.imbalance > 1.05  # eight ranks wait for the one with the most tiles


def test_dropping_and_packing_save_what_they_should(internvl) -> None:
    machine, drawn = machine_of("H100:8"), samples(600)
    recipe = PRETRAINING["remote_sensing"]
    ours = plan_pretraining(internvl, run_shape(recipe.make()), drawn, machine)
    published = plan_pretraining(
        internvl, run_shape(recipe.make(as_published=True), pads_dropped=True), drawn, machine
    )
    image = np.mean([one.tiles for one in drawn]) * 256
    text = np.mean([one.text for one in drawn])
    assert ours.tokens == pytest.approx(image + text)
    assert ours.kept_tokens == pytest.approx(0.25 * image + text, rel=0.1)
    assert ours.forward_tflop["language"] < 0.5 * published.forward_tflop["language"]
    assert ours.forward_tflop["vision"] == pytest.approx(published.forward_tflop["vision"], rel=0.1)
    assert ours.hours < 0.8 * published.hours
    assert ours.packing > published.packing
    assert ours.memory.total < published.memory.total
    assert ours.dollars == pytest.approx(ours.gpu_hours * DEVICES["H100"].dollars_per_hour)
    values = ours.to_json()
    assert values["hours"] == ours.hours and values["machine"]["device"]["name"] == "H100"


def test_a_plan_follows_its_assumptions(internvl) -> None:
    run, drawn = run_shape(PRETRAINING["medical"].make()), samples(300)
    machine = machine_of("A100:8")
    half = plan_pretraining(internvl, run, drawn, machine, utilisation=0.2, dollars_per_hour=3.0)
    full = plan_pretraining(internvl, run, drawn, machine, utilisation=0.4)
    assert half.hours == pytest.approx(2 * full.hours)
    assert half.dollars == pytest.approx(3.0 * 8 * half.hours)
    again = plan_pretraining(internvl, run, drawn, machine, utilisation=0.4)
    assert again == full


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [("H100", "H100", 1), ("h100:8", "H100", 8), ("8xA40", "A40", 8), ("4 × L40S", "L40S", 4), ("A100-40:2", "A100-40", 2)],
)  # fmt: skip
def test_machines_are_read(text: str, name: str, count: int) -> None:
    machine = machine_of(text)
    assert (machine.device.name, machine.count) == (name, count)


@pytest.mark.parametrize(
    ("text", "message"),
    [("H1000:8", 'did you mean "H100"'), ("H100:", "is no number of GPUs"), ("H100:0", "is no number"), ("", "unknown GPU")],
)  # fmt: skip
def test_other_machines_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        machine_of(text)


@given(
    tiles=st.lists(st.integers(0, 13), min_size=1, max_size=12),
    text=st.integers(8, 400),
    ratio=st.floats(0, 0.95),
    packs=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_micro_batch_loses_no_token(tiles, text, ratio, packs) -> None:
    model = model_shape(_tiny(), 320)
    run = RunShape(1, len(tiles), 1, packs, VRLSettings(ratio=ratio), False)
    batch = micro_batch(model, run, [SampleSize(n, text, 5) for n in tiles], np.random.default_rng(0))
    assert batch.work.tiles == sum(tiles) and batch.work.supervised == 5 * len(tiles)
    assert sum(batch.lengths) == batch.work.tokens <= batch.slots
    assert batch.slots % 8 == 0
    kept = [int(np.ceil(round((1 - ratio) * n * model.image_tokens, 9))) + text for n in tiles]
    assert list(batch.lengths) == kept


def _tiny() -> VLMSettings:
    return VLMSettings(
        vision=VisionSettings(
            arguments={"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}, image_size=32
        ),
        language=micro_qwen2(width=32, layers=2, heads=4, kv_heads=2, mlp=64),
        shuffle=1,
        template="micro",
    )


# Memory and FLOPs against a real step.

MODELS = {
    "micro": (
        VLMSettings(
            vision=VisionSettings(
                arguments={"embed_dim": 96, "depth": 4, "num_heads": 3, "patch_size": 8}, image_size=64
            ),
            language=micro_qwen2(width=96, layers=3, heads=6, kv_heads=2, mlp=256),
            shuffle=1,
            template="micro",
        ),
        8,
    ),
    "small": (
        VLMSettings(
            vision=VisionSettings(
                architecture="vit_intern300m_patch14_448",
                arguments={"embed_dim": 192, "depth": 6, "num_heads": 3},
                image_size=112,
            ),
            language=micro_qwen2(width=256, layers=4, heads=8, kv_heads=2, mlp=768),
            shuffle=2,
            template="micro",
        ),
        6,
    ),
}


def real_batch(vlm: VisionLanguageModel, records: int):
    tokens = vlm.tokens_per_tile
    chat = tiny_chat(tokens)
    encoded = [chat.encode(make_record(number, turns=6), [2]) for number in range(records)]
    size = vlm.vision.image_size[0]
    batch = pack(
        encoded,
        [random_tiles(number, 2, size) for number in range(records)],
        [np.arange(0, 2 * tokens, 2) for _ in range(records)],
        tokens_per_tile=tokens,
        max_length=4096,
        pad_id=chat.pad_id,
        together=True,
    )
    return chat, batch


def peak_of_a_step(objective: ViTPObjective, batch) -> int:
    """Bytes at the worst moment of a second step, as torch's profiler saw the allocator; weights not counted."""
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        objective(batch)["language"].backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = recorded.profiler.kineto_results.events()
    live, worst = 0, 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        worst = max(worst, live)
    return worst


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "recomputed"])
@pytest.mark.parametrize("name", MODELS)
def test_memory_is_what_torch_reports(name: str, checkpointing: bool) -> None:
    config, records = MODELS[name]
    torch.manual_seed(0)
    vlm = VisionLanguageModel(config, vocabulary=320).train()
    vlm.set_gradient_checkpointing(checkpointing)
    chat, batch = real_batch(vlm, records)
    runs = token_runs(batch.segments_BL.numpy(), batch.branches_BL.numpy())
    keys = int((runs.prefix_length_R + runs.length_R).sum())
    work = BatchLoad(len(batch.tiles_TCHW), len(batch.keep_K), batch.tokens, keys, len(batch.target_ids_S))
    predicted = step_memory(vlm_shape(vlm), work, bf16=False, checkpointing=checkpointing, accumulates=False)
    weights = sum(p.numel() * 4 for p in vlm.parameters())
    assert predicted.weights == weights and predicted.optimizer == 2 * weights
    measured = peak_of_a_step(ViTPObjective(vlm, chat), batch)
    # Weights and moments were there before the profiler started.
    assert predicted.total - 3 * weights == pytest.approx(measured, rel=0.15)
    assert predicted.total == pytest.approx(measured + 3 * weights, rel=0.15)


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_the_model(name: str) -> None:
    config, records = MODELS[name]
    vlm = VisionLanguageModel(config, vocabulary=320)
    _, batch = real_batch(vlm, records)
    counted = vlm_forward_flops(vlm, batch)
    image = 2 * vlm.tokens_per_tile
    text = batch.tokens // records - image // 2
    run = RunShape(1, records, 1, True, VRLSettings(ratio=0.5), False)
    planned = micro_batch(
        vlm_shape(vlm),
        run,
        [SampleSize(2, text, len(batch.target_ids_S) // records)] * records,
        np.random.default_rng(0),
    ).flops
    assert planned["vision"] == pytest.approx(counted["vision"], rel=1e-6)
    assert planned["projector"] == pytest.approx(counted["projector"], rel=1e-6)
    assert planned["language"] == pytest.approx(counted["language"], rel=0.15)


@pytest.mark.parametrize("name", ["whu_cd", "rsar"])
def test_finetuning_plans_count_the_model(name: str) -> None:
    """Twice the GPUs take half of the hours; pairs cost about twice; a head costs more than none."""
    config = small_finetune(FINETUNING[name].make())
    assert config.backbone.vision is not None
    vision = config.backbone.vision

    def make() -> TaskModel:
        return build_model(config.task, VisionTower(vision), ["a", "b"], config.neck, config.head)

    one, two = (plan_finetune(config, make, machine_of(f"A100:{n}"), images=None) for n in (1, 2))
    assert one.hours == pytest.approx(2 * two.hours) and one.dollars == pytest.approx(two.dollars)
    assert one.parameters == sum(p.numel() for p in make().parameters())
    assert (one.steps, one.batch, one.input_size) == (2, 4, 64)
    dates = 2 if config.task == "change" else 1
    tower = dates * vision_flops(VisionTower(vision), 1)
    assert tower < one.forward_tflop * 1e12
    with pytest.raises(ConfigError, match="epochs of an unknown number"):
        plan_finetune(FINETUNING["dior"].make(), make, machine_of("A100"), images=None)


# Samples.


def test_samples_of_a_mixture_are_counted() -> None:
    records = [make_record(number, turns=2) for number in range(20)]
    sized = [record.__class__(**{**_fields(record), "sizes": ((64, 32),)}) for record in records]
    mixture = Mixture([MixtureEntry(ListRecords(sized, "few"), max_tiles=4)], seed=0)
    chat = tiny_chat(16)
    exact = measured_samples(mixture, 32, 6, 10, chat=chat)
    rough = measured_samples(mixture, 32, 6, 10, chat=None)
    assert len(exact) == len(rough) == 10
    assert {one.tiles for one in exact} == {one.tiles for one in rough} == {3}  # two tiles and a thumbnail
    assert all(0 < one.supervised < one.text for one in (*exact, *rough))
    one = measured_samples(mixture, 32, 6, 10, chat=chat, max_turns=1)
    assert sum(sample.text for sample in one) < sum(sample.text for sample in exact)


def _fields(record) -> dict:
    return {name: getattr(record, name) for name in ("id", "images", "turns", "independent")}


def test_assumed_samples_follow_rates_and_sizes() -> None:
    sets = [
        AssumedSet(3.0, TypicalRecord(((1.0, 448, 448),), text=50, answer=5), 12),
        AssumedSet(1.0, TypicalRecord(((1.0, 1024, 1024),), text=80, answer=9), 12),
    ]
    drawn = assumed_samples(sets, 448, 4000)
    assert {(one.tiles, one.text, one.supervised) for one in drawn} == {(1, 50, 5), (10, 80, 9)}
    assert np.mean([one.tiles == 10 for one in drawn]) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a ship", 2), ("[12, 345]", 8), ("reconnaissance", 3)]
)
def test_tokens_are_estimated(text: str, tokens: int) -> None:
    assert estimated_tokens(text) == tokens


def test_models_are_found_by_name_and_folder(internvl) -> None:
    for name in ("OpenGVLab/InternVL2_5-1B", "models/InternVL3-1B/", "OpenGVLab/InternVL3-1B-hf"):
        shape, chat = planned_model(ModelSettings(init=name))
        assert shape == internvl and chat is None
    starter, chat = planned_model(ModelSettings(init="starter"))
    assert chat is not None and starter.image_tokens == chat.tokens_per_tile == 144
    with pytest.raises(ConfigError, match="doesn't say the sizes"):
        planned_model(ModelSettings(init="scratch"))
