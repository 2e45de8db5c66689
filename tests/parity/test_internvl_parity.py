"""InternVL in every layout against transformers' and timm's own implementations, on random weights and images."""

from __future__ import annotations

import gc
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, safe_open
from torch import Tensor
from transformers import InternVLForConditionalGeneration

from tests.weights_toys import (
    IMAGE_ID,
    TRUE_1B,
    Sizes,
    hf_config,
    hf_names,
    original_folder,
    original_weights,
    vision_weights,
)
from vitp.checkpoints.checkpoint import read_checkpoint
from vitp.checkpoints.convert import compare_weights, convert_model, random_images, random_prompt
from vitp.checkpoints.loading import load_backbone, load_vlm
from vitp.checkpoints.writing import write_hf
from vitp.models.projector import pixel_shuffle
from vitp.models.resample import resized_tower
from vitp.models.vlm import VisionLanguageModel

TOLERANCE = 1e-5


def reference(sizes: Sizes, dtype: torch.dtype = torch.float32):
    """transformers' model, filled by names that are written down in the fixtures and not by our code."""
    from transformers import InternVLConfig

    # The published files say bfloat16, in which transformers would build the parts: the numbers would be rounded.
    values = {
        key: value for key, value in hf_config(sizes).items() if key not in ("model_type", "torch_dtype")
    }
    for part in ("text_config", "vision_config"):
        values[part] = {key: value for key, value in values[part].items() if key != "torch_dtype"}
    model = InternVLForConditionalGeneration(InternVLConfig(**values))
    named = {}
    for name, tensor in hf_names(original_weights(sizes), sizes).items():
        if name == "language_model.lm_head.weight":
            named["lm_head.weight"] = tensor
        else:
            named[f"model.{name.replace('language_model.model.', 'language_model.')}"] = tensor
    missing, unexpected = model.load_state_dict(named, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"] if sizes.tied else [], [])
    return model.to(dtype).eval()


def close(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape
    scale = max(1.0, float(theirs.abs().max()))
    assert float((ours.float() - theirs.float()).abs().max()) / scale <= tolerance


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def pair(request, tmp_path_factory):
    sizes = Sizes(tied=request.param)
    folder = original_folder(tmp_path_factory.mktemp("published") / "InternVL", sizes)
    return load_vlm(folder).vlm, reference(sizes), folder, sizes


@torch.no_grad()
def test_vision_projector_and_logits_equal_transformers(pair):
    vlm, theirs, _, _ = pair
    images = random_images(32, count=3)
    pixels = vlm.vision.normalize(images)
    close(
        vlm.vision.forward_tokens(pixels),
        theirs.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:],
    )
    close(
        vlm.encode_tiles(images),
        theirs.get_image_features(pixel_values=pixels, return_dict=True).pooler_output,
    )
    ids_N, places_K = random_prompt(theirs.config.text_config.vocab_size, 16, IMAGE_ID)
    inputs = vlm.embed(images[:1], torch.arange(16), places_K, ids_N[None])
    ours = vlm.language(inputs_embeds=inputs).logits
    expected = theirs(input_ids=ids_N[None], pixel_values=pixels[:1]).logits
    close(ours, expected)
    assert float(expected.std()) > 0.05  # the comparison is of something


@torch.no_grad()
@pytest.mark.parametrize("size", [(24, 24), (48, 40)])
def test_images_of_another_size_get_the_positions_of_transformers(pair, size):
    vlm, theirs, _, _ = pair
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(5))
    given = vlm.vision.forward_tokens(images)
    close(given, theirs.model.vision_tower(pixel_values=images).last_hidden_state[:, 1:])
    timm_way = resized_tower(vlm.vision, positions="antialiased").forward_tokens(images)
    assert float((timm_way - given).abs().max()) > 1e-3


@torch.no_grad()
def test_generation_equals_transformers(pair):
    vlm, theirs, _, _ = pair
    images = random_images(32, count=2, seed=3)
    ids_N, places_K = random_prompt(theirs.config.text_config.vocab_size, 2 * 16, IMAGE_ID, seed=1)
    ours = vlm.generate(images, ids_N, places_K, max_new_tokens=8, do_sample=False)
    expected = theirs.generate(
        input_ids=ids_N[None],
        attention_mask=torch.ones_like(ids_N[None]),
        pixel_values=vlm.vision.normalize(images),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
    )
    assert ours.tolist() == expected[0, len(ids_N) :].tolist()
    assert len(ours) == 8


def test_gradients_equal_transformers(pair):
    vlm, theirs, _, _ = pair
    images = random_images(32, count=1)
    ids_N, places_K = random_prompt(theirs.config.text_config.vocab_size, 16, IMAGE_ID)
    weight = torch.randn(theirs.config.text_config.vocab_size, generator=torch.Generator().manual_seed(0))
    for model in (vlm, theirs):
        model.zero_grad()
    inputs = vlm.embed(images, torch.arange(16), places_K, ids_N[None])
    (vlm.language(inputs_embeds=inputs).logits * weight).mean().backward()
    pixels = vlm.vision.normalize(images)
    (theirs(input_ids=ids_N[None], pixel_values=pixels).logits * weight).mean().backward()
    layer = theirs.model.vision_tower.encoder.layer[0]
    ours = vlm.vision.model.blocks[0]
    assert float(ours.attn.qkv.weight.grad.abs().max()) > 0
    expected = torch.cat([getattr(layer.attention, f"{part}_proj").weight.grad for part in "qkv"])
    torch.testing.assert_close(ours.attn.qkv.weight.grad, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(ours.ls1.gamma.grad, layer.lambda_1.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(
        vlm.vision.model.pos_embed.grad,
        theirs.model.vision_tower.embeddings.position_embeddings.grad,
        atol=1e-6,
        rtol=1e-4,
    )
    torch.testing.assert_close(
        vlm.projector[1].weight.grad,
        theirs.model.multi_modal_projector.linear_1.weight.grad,
        atol=1e-6,
        rtol=1e-4,
    )


@torch.no_grad()
def test_the_tower_equals_timms_internvit(pair):
    _, _, folder, sizes = pair
    tower = load_backbone(folder)
    plain = timm.create_model(
        "vit_intern300m_patch14_448", num_classes=0, global_pool="", img_size=sizes.image, patch_size=sizes.patch,
        embed_dim=sizes.width, depth=sizes.layers, num_heads=sizes.heads, mlp_ratio=sizes.mlp / sizes.width,
    ).eval()  # fmt: skip
    published = vision_weights(sizes, prefix="")
    renamed = {
        name.replace("embeddings.class_embedding", "cls_token")
        .replace("embeddings.position_embedding", "pos_embed")
        .replace("embeddings.patch_embedding", "patch_embed.proj")
        .replace("encoder.layers.", "blocks.")
        .replace(".ls1", ".ls1.gamma")
        .replace(".ls2", ".ls2.gamma"): tensor
        for name, tensor in published.items()
    }
    plain.load_state_dict(renamed, strict=True)
    pixels = tower.normalize(random_images(sizes.image))
    close(tower.forward_tokens(pixels), plain.forward_features(pixels)[:, 1:])


def chain(folder: Path, out: Path) -> dict[str, Path]:
    """original → ours → hf → original, and hf → timm → ours (a tower) → original."""
    steps = {"ours": (folder, "vitp"), "hf": ("ours", "hf"), "back": ("hf", "original"), "timm": ("hf", "timm"),
             "tower": ("timm", "vitp"), "tower-original": ("tower", "original")}  # fmt: skip
    made: dict[str, Path] = {}
    for name, (source, layout) in steps.items():
        done = convert_model(made.get(str(source), source), out / name, layout)  # type: ignore[arg-type]
        assert done.checks.passed
        made[name] = out / name
    return made


def test_round_trips_leave_every_weight_bit_identical(pair, tmp_path):
    _, theirs, folder, _ = pair
    made = chain(folder, tmp_path)
    published = load_file(folder / "model.safetensors")
    compare_weights(published, load_file(made["back"] / "model.safetensors"))
    vision = {name: tensor for name, tensor in published.items() if name.startswith("vision_model.")}
    compare_weights(vision, load_file(made["tower-original"] / "model.safetensors"))
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
        for name in ("ours", "timm", "tower", "tower-original"):
            close(load_backbone(made[name]).forward_tokens(pixels), expected)


def test_half_precision_makes_the_round_trip_too(tmp_path):
    folder = original_folder(tmp_path / "InternVL", replace(Sizes(), dtype=torch.bfloat16))
    made = chain(folder, tmp_path)
    compare_weights(load_file(folder / "model.safetensors"), load_file(made["back"] / "model.safetensors"))


def test_what_transformers_writes_is_read(pair, tmp_path):
    """Folders that transformers itself saves, whichever spelling of names its version has."""
    _, theirs, folder, _ = pair
    theirs.save_pretrained(tmp_path / "saved")
    for file in ("tokenizer_config.json", "vocab.json", "merges.txt"):
        (tmp_path / "saved" / file).write_bytes((folder / file).read_bytes())
    loaded = load_vlm(tmp_path / "saved")
    assert loaded.report is not None and loaded.report.complete
    expected = load_vlm(folder).vlm.state_dict()
    own = loaded.vlm.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[name], expected[name]) for name in own)


def test_transformers_reads_what_convert_writes_as_a_whole(pair, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    _, theirs, folder, _ = pair
    convert_model(folder, tmp_path / "hf", "hf")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    own, expected = model.state_dict(), theirs.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[name], expected[name]) for name in own)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == IMAGE_ID == model.config.image_token_id
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_transformers_own_processor_feeds_what_convert_writes(pair, tmp_path):
    from transformers import AutoProcessor

    vlm, _, folder, _ = pair
    convert_model(folder, tmp_path / "hf", "hf")
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    pixels = random_images(32, count=1)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Is there a ship?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert int((inputs["input_ids"] == IMAGE_ID).sum()) == vlm.tokens_per_tile
    close(inputs["pixel_values"], vlm.vision.normalize(pixels))


# The true sizes


def peak_gib() -> float:
    """Most memory that this program has had, in GiB, pages of mapped files included.

    Not `ru_maxrss`, in which Linux counts what the process that started this one had.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 2**20


def names_and_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(file, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_true_shapes_of_internvl2_5_1b(tmp_path):
    """938 M random weights in bfloat16, computed in float32, in 8 GiB: names, shapes, numbers and outputs.

    A process of its own: the peak of this one may be that of another test.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(the_true_shapes, tmp_path).result() < 8


@torch.no_grad()
def the_true_shapes(tmp_path: Path) -> float:
    """Compares the model of 1 B with transformers' and returns the process's peak memory in GiB."""
    folder = original_folder(tmp_path / "InternVL2_5-1B", TRUE_1B)
    gc.collect()
    shapes = names_and_shapes(folder / "model.safetensors")
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 938_193_024
    assert shapes["mlp1.1.weight"] == (896, 4096)
    images = random_images(448, count=1)
    ids_N, places_K = random_prompt(TRUE_1B.vocabulary, 256, IMAGE_ID)

    vlm: VisionLanguageModel = load_vlm(folder).vlm
    assert vlm.tokens_per_tile == 256
    assert vlm.vision.config.arguments == {}  # timm's defaults are its sizes
    pixels = vlm.vision.normalize(images)
    ours_vision = vlm.vision.forward_tokens(pixels)
    embedded = vlm.language.get_input_embeddings()(ids_N[None])
    embedded[0, places_K] = vlm.projector(pixel_shuffle(ours_vision, 2))[0]
    ours_logits = vlm.language(inputs_embeds=embedded, use_cache=False).logits
    del vlm, embedded
    gc.collect()

    hf = tmp_path / "hf"
    hf.mkdir()
    checkpoint = read_checkpoint(folder)
    write_hf(hf, checkpoint)
    empty = {name: torch.empty(3 * 1024 if "qkv" in name else 1) for name in shapes}
    assert names_and_shapes(hf / "model.safetensors").keys() == hf_names(empty, TRUE_1B).keys()
    compare_weights(checkpoint.weights, read_checkpoint(hf).weights)
    del checkpoint
    gc.collect()

    # Read as it is stored and widened afterwards, which takes less memory than reading it as float32.
    theirs = InternVLForConditionalGeneration.from_pretrained(hf, dtype=torch.bfloat16).float().eval()
    close(ours_vision, theirs.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:])
    close(ours_logits, theirs(input_ids=ids_N[None], pixel_values=pixels, use_cache=False).logits)
    return peak_gib()
