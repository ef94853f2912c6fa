import numpy as np
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from pretrain.evaluation.knn import knn_predict


def _clouds(n, dim, classes, spread, seed=0):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, dim, generator=rng)
    return centres[labels] + spread * torch.randn(n, dim, generator=rng), labels


def test_predictions_equal_scikit_learns_weighted_cosine_neighbours():
    x, labels = _clouds(900, 16, 7, 1.5)
    train, truth, asked = x[:600], labels[:600], x[600:]
    weigh = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute")
    expected = weigh.fit(train.double().numpy(), truth.numpy()).predict(asked.double().numpy())
    assert knn_predict(train, truth, asked, k=20, temperature=0.07).tolist() == expected.tolist()


def test_leaving_one_out_never_asks_the_image_itself():
    x, labels = _clouds(300, 8, 3, 5.0)
    expected = [int(knn_predict(x[keep], labels[keep], x[i : i + 1], k=5)) for i in range(300)
                for keep in [torch.arange(300) != i]]
    assert knn_predict(x, labels, None, k=5).tolist() == expected


def test_a_vote_grows_with_similarity_not_with_number_alone():
    train = F.normalize(torch.tensor([[1.0, 0.0], [0.2, 1.0], [0.1, 1.0]]), dim=1)
    labels = torch.tensor([1, 0, 0])
    assert knn_predict(train, labels, torch.tensor([[1.0, 0.1]]), k=3, temperature=0.07).tolist() == [1]
    assert knn_predict(train, labels, torch.tensor([[1.0, 0.1]]), k=3, temperature=100.0).tolist() == [0]


def test_of_equally_near_images_the_first_comes_first_and_of_equal_votes_the_lower_class():
    train = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    asked = torch.tensor([[2.0, 0.0]])
    assert knn_predict(train, torch.tensor([3, 0, 0, 0]), asked, k=1).tolist() == [3]
    assert knn_predict(train, torch.tensor([0, 3, 3, 3]), asked, k=1).tolist() == [0]
    assert knn_predict(train, torch.tensor([3, 2, 3, 2]), asked, k=4).tolist() == [2]


def test_length_of_a_feature_does_not_matter():
    x, labels = _clouds(200, 8, 4, 1.0)
    stretch = torch.linspace(0.01, 100, 100)[:, None]
    plain = knn_predict(x[:100], labels[:100], x[100:])
    assert torch.equal(knn_predict(x[:100] * stretch, labels[:100], x[100:] / stretch), plain)


def test_more_queries_than_one_chunk_and_more_neighbours_than_images_are_allowed():
    x, labels = _clouds(700, 4, 2, 0.1)
    assert torch.equal(knn_predict(x[:6], labels[:6], x, k=20), labels)
    assert torch.equal(knn_predict(x, labels), labels)
