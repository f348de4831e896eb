"""Image classifiers of any architecture: ℓ, Fishers, what they share and how they are saved."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    pipeline,
)

from fmerge.errors import UserError
from fmerge.fisher import FisherSettings, estimate_fisher
from fmerge.modules import FisherPass, ImageClassifier, TextClassifier
from fmerge.params import head_parts, last_linear
from fmerge.store import IMAGE_PROCESSORS, LabelNames
from fmerge.store.label_kinds import PROBLEMS
from tests import oracle, tiny, tiny_images
from tests.compare import assert_same

CONFIGS = {
    "vit": tiny_images.vit_config,
    "resnet": tiny_images.resnet_config,
    "convnext": tiny_images.convnext_config,
    "swin": tiny_images.swin_config,
    "siglip": tiny_images.siglip_config,
}


def saved(folder, kind="vit", labels=("a", "b", "c"), seed=0):
    return tiny_images.save(tiny_images.classifier(CONFIGS[kind](labels), seed), folder)


def adopted(folder, *tasks):
    module = ImageClassifier()
    models = {task: module.read(folder, task) for task in tasks or ("x",)}
    module.adopt(models, IMAGE_PROCESSORS.load(folder))
    return module.double().eval()


def examples(n=5):
    pictures = tiny_images.pictures(n, 3, classes=3)
    return [{"image": one, "label": i % 3} for i, one in enumerate(pictures)]


def alone(folder):
    """ℓ of one image of Pillow, by transformers, in float64."""
    model = AutoModelForImageClassification.from_pretrained(folder).double().eval()
    processor = AutoImageProcessor.from_pretrained(folder)

    def log_probs(picture):
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        return model(pixel_values=pixels.double()).logits.log_softmax(1)

    return model, log_probs


def batch_of(module, some):
    batch = module.collate(some, "x")
    return {**batch, "pixel_values": batch["pixel_values"].double()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_fisher_is_its_definition(tmp_path, kind):
    folder = saved(tmp_path, kind)
    module = adopted(folder)
    batches = [batch_of(module, examples()[:2]), batch_of(module, examples()[2:3])]
    network = module.task_model("x")
    found = estimate_fisher(network, batches, module.label_log_probs)

    model, log_probs = alone(folder)
    expected, _ = oracle.fisher(
        model, [one["image"] for one in examples()[:3]], log_probs, lambda values, n: values.exp()
    )
    # SigLIP's classifier has a pooler that it does not use
    whole = {n: expected[n] + torch.zeros_like(p) for n, p in model.named_parameters()}
    assert_same(found.values, whole)


@pytest.mark.parametrize(("kind", "count"), [("labels", 3), ("number", 1)])
def test_the_fisher_of_other_answers(tmp_path, kind, count):
    """Labels: the sum over labels of Σ p (∂ log p)², each a sigmoid's; a number: (∂μ)²."""
    names = LabelNames([str(i) for i in range(count)], kind)
    config = tiny_images.vit_config(names)
    config.problem_type = PROBLEMS[kind]
    folder = tiny_images.save(tiny_images.classifier(config), tmp_path)
    module = ImageClassifier()
    module.adopt({"x": module.read(folder, "x", names)}, IMAGE_PROCESSORS.load(folder))
    module.double().eval()
    label = [0] * count if kind == "labels" else 0.0
    some = [{"image": one["image"], "label": label} for one in examples(3)]
    fisher = FisherPass(module, "x", FisherSettings())
    accumulator = fisher._make()
    accumulator.add(fisher._with_answers(batch_of(module, some), range(3)), range(3))

    model, _ = alone(folder)
    processor = AutoImageProcessor.from_pretrained(folder)

    def answers(picture):
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        logits = model(pixel_values=pixels.double()).logits
        both = torch.cat([logits.sigmoid().log(), (-logits).sigmoid().log()], dim=1)
        return both if kind == "labels" else logits

    def weights(values, n):
        return values.exp() if kind == "labels" else [1.0]

    expected, _ = oracle.fisher(model, [one["image"] for one in some], answers, weights)
    assert_same(accumulator.estimate().values, expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_tasks_share_all_but_the_head(tmp_path, kind):
    module = adopted(saved(tmp_path, kind), "x", "y")
    one, other = (dict(module.task_model(task).named_parameters()) for task in "xy")
    head = {name for name in one if one[name] is not other[name]}
    assert head == {name for name in one if name.startswith(("classifier.", "fc."))}
    network = module.task_model("x")
    assert set(module.body(network)) == set(one) - head
    assert last_linear(network)[0] in {"classifier", "classifier.1"}
    assert head_parts(network) == {"classifier"}
    buffers = (dict(module.task_model(task).named_buffers()) for task in "xy")
    assert all(mine is theirs for mine, theirs in zip(*(b.values() for b in buffers), strict=True))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_saved_folder_opens_in_a_pipeline_with_the_same_outputs(tmp_path, kind):
    module = adopted(saved(tmp_path / "a", kind), "x")
    expected = module.label_log_probs(batch_of(module, examples())).exp()
    module.float().save(tmp_path / "b")
    run = pipeline("image-classification", model=str(tmp_path / "b"), device="cpu")
    for example, row in zip(examples(), expected.tolist(), strict=True):
        found = {one["label"]: one["score"] for one in run(example["image"], top_k=3)}
        assert found == pytest.approx(dict(zip("abc", row, strict=True)), abs=1e-6)


def test_labels_in_another_order_exchange_the_outputs(tmp_path):
    folder = saved(tmp_path)
    module = ImageClassifier()
    same, other = (module.read(folder, "x", list(labels)) for labels in ("abc", "bca"))
    assert other.classifier.weight.equal(same.classifier.weight[[1, 2, 0]])


def test_outputs_of_two_heads_are_not_exchanged(tmp_path):
    """DeiT answers by the mean of two layers: exchanging those of one would mix the classes up."""
    small = tiny_images.vit_config().to_dict()
    for name in ("model_type", "architectures"):
        small.pop(name)
    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**small))
    folder = tiny_images.save(model, tmp_path)
    read = ImageClassifier().read(folder, "x", list("abc"))
    assert type(read) is DeiTForImageClassificationWithTeacher
    with pytest.raises(UserError, match="its labels stand in another order than the task's"):
        ImageClassifier().read(folder, "x", list("bca"))


def test_a_base_gets_a_new_head(tmp_path):
    model = tiny_images.classifier(tiny_images.vit_config())
    model.vit.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no trained image classification head .*ViTModel"):
        ImageClassifier().read(str(tmp_path), "x")
    found = ImageClassifier().read(str(tmp_path), "x", ["d", "e"], fresh_head=True)
    assert found.classifier.weight.shape == (2, 8)
    assert found.config.id2label == {0: "d", 1: "e"}
    own = {f"vit.{name}": tensor for name, tensor in model.vit.named_parameters()}
    assert all(found.get_parameter(name).equal(tensor) for name, tensor in own.items())


def test_half_of_a_body_is_no_base(tmp_path):
    """SigLIP's classifier has no part that is its body: what lacks must be seen."""
    config = tiny_images.siglip_config()
    model = tiny_images.classifier(config)
    state = {n: t for n, t in model.state_dict().items() if "layers.0.mlp" not in n}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match="body tensor 'vision_model.encoder.layers.0.mlp.* missing"):
        ImageClassifier().read(str(tmp_path), "x", ["d", "e"], fresh_head=True)


def test_the_mode_is_restored_and_batch_norms_do_not_move(tmp_path):
    folder = saved(tmp_path, "resnet")
    module = adopted(folder)
    network = module.task_model("x").train()
    before = copy.deepcopy(network.state_dict())
    module.check_preprocessor(network, module.preprocessor_of("x"), folder)
    assert network.training
    assert all(before[name].equal(tensor) for name, tensor in network.state_dict().items())


def test_another_size_is_refused(tmp_path):
    folder = saved(tmp_path)
    tiny_images.write_processor(tmp_path, size={"height": 12, "width": 12})
    with pytest.raises(UserError, match=r"makes inputs of shape \(3, 12, 12\), which its model"):
        adopted(folder)


def test_what_is_missing_or_of_another_kind_is_said(tmp_path):
    folder = saved(tmp_path / "a")
    module = adopted(folder)
    with pytest.raises(UserError, match="task 'x': its examples have no images; give ImageFiles"):
        module.collate([{"text": "a", "label": 0}], "x")
    texts = TextClassifier()
    with pytest.raises(UserError, match="its examples are images; give --model ImageClassifier"):
        texts.collate([{"image": "a.png", "label": 0}], "x")
    with pytest.raises(UserError, match="it is an image classifier .*: --model ImageClassifier"):
        texts.read(folder, "x")
    with pytest.raises(UserError, match="is a text classifier .*: --model TextClassifier"):
        module.read(tiny.save(tiny.classifier(tiny.bert_config()), tmp_path / "b"), "x")
    (tmp_path / "a" / "preprocessor_config.json").unlink()
    assert IMAGE_PROCESSORS.find(folder) is None
    with pytest.raises(UserError, match="holds no image processor .preprocessor_config.json."):
        IMAGE_PROCESSORS.load(folder)


def test_an_image_that_does_not_open_is_named(tmp_path):
    module = adopted(saved(tmp_path / "a"))
    shutil.copy(Path(__file__), tmp_path / "no.png")
    with pytest.raises(UserError, match=r"no.png: cannot be opened as an image \(unknown format"):
        module.collate([{"image": str(tmp_path / "no.png"), "label": 0}], "x")
