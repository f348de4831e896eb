"""CLIP and SigLIP with a frozen head: logits, Fishers, and the towers that are read and saved."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPVisionModelWithProjection, pipeline

from fmerge.errors import UserError
from fmerge.fisher import estimate_fisher
from fmerge.modules import ClipClassifier
from fmerge.store import IMAGE_PROCESSORS, load_tokenizer
from tests import oracle, tiny_images
from tests.compare import assert_same

COLOURS = ["blue", "green", "red"]
TEMPLATES = ["sea {} one", "stone {} two"]
"""CLIP reads a text off at its highest id, here that of the last word."""
KINDS = ["clip", "siglip"]


def adopted(folder, tasks=("x",), **options):
    module = ClipClassifier(templates=dict.fromkeys(tasks, TEMPLATES), **options)
    models = {task: module.read(folder, task, COLOURS) for task in tasks}
    module.adopt(models, IMAGE_PROCESSORS.load(folder))
    return module.double().eval()


def examples(n=3):
    pictures = tiny_images.pictures(n, 3, classes=3)
    return [{"image": one, "label": i % 3} for i, one in enumerate(pictures)]


def batch_of(module, some):
    batch = module.collate(some, "x")
    return {**batch, "pixel_values": batch["pixel_values"].double()}


def text_features(folder):
    """The mean over templates of one prompt's features at a time, by transformers, in float32."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), load_tokenizer(folder)
    rows = []
    for name in COLOURS:
        own = []
        for template in TEMPLATES:
            tokens = tokenizer(
                template.replace("{}", name), padding="max_length", max_length=16,
                return_tensors="pt",
            )  # fmt: skip
            with torch.no_grad():
                found = model.get_text_features(**tokens).pooler_output[0]
            own.append(found / found.norm())
        mean = sum(own) / len(own)
        rows.append(mean / mean.norm())
    return torch.stack(rows).double()


@pytest.mark.parametrize("kind", KINDS)
def test_log_likelihoods_and_fisher_are_their_definitions(tmp_path, kind):
    folder = tiny_images.save_clip(tmp_path, kind)
    module = adopted(folder)
    some = examples()
    batch = batch_of(module, some)
    found = estimate_fisher(module.task_model("x"), [batch], module.label_log_probs)

    texts = text_features(folder)
    model = AutoModel.from_pretrained(folder).double().eval()
    tower = torch.nn.Module()
    tower.vision_model = model.vision_model
    if kind == "clip":
        tower.visual_projection = model.visual_projection

    def log_probs(n):
        features = model.get_image_features(batch["pixel_values"][n : n + 1]).pooler_output
        features = features / features.norm(dim=-1, keepdim=True)
        return (model.logit_scale.detach().exp() * features @ texts.T).log_softmax(1)

    with torch.no_grad():
        expected = torch.cat([log_probs(n) for n in range(3)])
        torch.testing.assert_close(module.label_log_probs(batch), expected, rtol=1e-5, atol=1e-6)
    fishers, _ = oracle.fisher(tower, range(3), log_probs, lambda values, n: values.exp())
    assert_same(found.values, fishers)


def test_only_the_tower_is_shared_and_merged(tmp_path):
    module = adopted(tiny_images.save_clip(tmp_path, "clip"), ("x", "y"))
    one, other = (module.task_model(task) for task in "xy")
    assert one.vision_model is other.vision_model and one.texts is not other.texts
    names = set(module.body(one))
    assert names == {n for n, _ in one.named_parameters()}
    assert "visual_projection.weight" in names and not any("text" in name for name in names)
    # nothing of the head is in a checkpoint
    assert {n.removeprefix("models.x.") for n in module.state_dict() if "models.x." in n} == names


@pytest.mark.parametrize("form", ["tower", "former names", "with projection"])
def test_towers_that_were_saved_alone(tmp_path, form):
    whole = tiny_images.save_clip(tmp_path / "whole", "clip")
    model = tiny_images.clip("clip", seed=7)
    if form == "with projection":
        alone = CLIPVisionModelWithProjection(model.config.vision_config)
        alone.vision_model, alone.visual_projection = model.vision_model, model.visual_projection
    else:
        alone = model.vision_model
    alone.save_pretrained(tmp_path / "alone")
    if form == "former names":
        path = tmp_path / "alone" / "model.safetensors"
        named = {f"vision_model.{name}": tensor for name, tensor in load_file(path).items()}
        save_file(named, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="is a vision tower without its texts; give .*--model.path"):
        ClipClassifier().read(str(tmp_path / "alone"), "x", COLOURS)
    module = ClipClassifier(path=whole)
    found = module.read(str(tmp_path / "alone"), "x", COLOURS)
    base = module.read(whole, "x", COLOURS)
    assert_same(
        dict(found.vision_model.named_parameters()), dict(model.vision_model.named_parameters())
    )
    own = model if form == "with projection" else base
    assert found.visual_projection.weight.equal(own.visual_projection.weight)
    assert found.texts.equal(base.texts)
    whole_expert = tiny_images.save_clip(tmp_path / "expert", "clip", seed=7)
    as_whole = module.read(whole_expert, "x", COLOURS)
    assert as_whole.texts.equal(base.texts)  # the text tower is that of path
    assert as_whole.visual_projection.weight.equal(model.visual_projection.weight)


def test_a_saved_folder_opens_in_a_pipeline_with_the_same_outputs(tmp_path):
    folder = tiny_images.save_clip(tmp_path / "a", "clip")
    module = ClipClassifier(templates={"x": TEMPLATES[:1]})
    module.adopt({"x": module.read(folder, "x", COLOURS)}, IMAGE_PROCESSORS.load(folder))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    module.eval()
    with torch.no_grad():
        expected = module.label_log_probs(module.collate(examples(), "x")).exp()
    module.save(tmp_path / "b")
    run = pipeline("zero-shot-image-classification", model=str(tmp_path / "b"), device="cpu")
    for example, row in zip(examples(), expected.tolist(), strict=True):
        answers = run(example["image"], candidate_labels=COLOURS, hypothesis_template=TEMPLATES[0])
        found = {one["label"]: one["score"] for one in answers}
        assert found == pytest.approx(dict(zip(COLOURS, row, strict=True)), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"templates": {"x": ["a photo"]}}, "those of 'x' are .*, but each prompt must hold {}"),
        ({"class_texts": {"x": ["red"]}}, "has 1 texts for 'x', which has 3 classes: blue, green"),
    ],
)
def test_prompts_that_do_not_fit(tmp_path, options, says):
    folder = tiny_images.save_clip(tmp_path, "clip")
    with pytest.raises(UserError, match=says):
        ClipClassifier(**options).read(folder, "x", COLOURS)


def test_other_models_are_refused(tmp_path):
    folder = tiny_images.save(tiny_images.classifier(tiny_images.vit_config()), tmp_path / "vit")
    with pytest.raises(UserError, match="a vision model, not a model of images and texts, as CLIP"):
        ClipClassifier().read(folder, "x", COLOURS)
    whole = tiny_images.save_clip(tmp_path / "whole", "clip")
    other = tiny_images.clip("clip", image_size=16)
    other.vision_model.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="position_embedding.weight' is .17, 8., but .5, 8. in the"):
        ClipClassifier(path=whole).read(str(tmp_path / "other"), "x", COLOURS)
