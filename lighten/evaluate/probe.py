"""A linear probe: how well a linear classifier reads the labels from an encoder's embeddings.

Dimension key: N training examples, M test examples, E embedding, C classes.

Each network gets its own probe, fitted on its own training embeddings: the question is whether the compressed embeddings
still hold what a user would fit on them, not whether they lie where the original's lay.
"""

import numpy as np
import torch

from lighten.core.data import Runner, Split
from lighten.core.errors import InputError
from lighten.evaluate.collect import collect
from lighten.evaluate.predictions import Array, Pass, Predictions


def collect_probe(runner: Runner, *, train: Split, test: Split, how: Pass, what: str) -> Predictions:
    """The probe's logits on `test`, for the metric "probe". Raises as `collect` does, and InputError without training
    labels.
    """
    fitted_on = collect(runner, train, how=how, what=f"{what}, training embeddings")
    scored_on = collect(runner, test, how=how, what=f"{what}, test embeddings")
    if fitted_on.targets is None:
        raise InputError("A probe is fitted on labelled training examples, and these have no labels.")
    logits_MC = probe_logits(fitted_on.values, fitted_on.targets, scored_on.values)
    return Predictions(scored_on.task, logits_MC, scored_on.targets, scored_on.index)


def probe_logits(train_NE: Array, labels_N: Array, test_ME: Array, *, damp: float = 0.05) -> Array:
    """Ridge regression onto one-hot labels in closed form, float64, no randomness; (M, C) scores.

    Embeddings are standardised by the training mean and deviation, and the intercept is not damped:
    W = (X'X + damp N I)^-1 X'(Y - mean Y). damp: no unit, the ridge per example on unit-variance features; 0.05 keeps the
    system well posed when N is near E and hardly shrinks when N is large (Hastie, Tibshirani, Friedman 2009, section 3.4.1).
    The scores fit 0 and 1 by least squares: their order is meaningful, probabilities made from them are not.
    Raises InputError when there are fewer than two classes.
    """
    classes = np.unique(labels_N)
    if len(classes) < 2:
        raise InputError(f"A probe needs training labels of at least two classes. Got {classes.tolist()}.")
    train, test = torch.from_numpy(train_NE).double(), torch.from_numpy(test_ME).double()
    mean_E, deviation_E = train.mean(0), train.std(0, correction=0)
    scale_E = torch.where(deviation_E > 0, deviation_E, 1.0)  # a constant column carries nothing; leave it at 0
    train, test = (train - mean_E) / scale_E, (test - mean_E) / scale_E
    one_hot_NC = torch.nn.functional.one_hot(torch.from_numpy(labels_N).long()).double()
    gram_EE = train.T @ train + damp * len(train) * torch.eye(train.shape[1], dtype=torch.float64)
    weight_EC = torch.linalg.solve(gram_EE, train.T @ (one_hot_NC - one_hot_NC.mean(0)))
    logits_MC: Array = (test @ weight_EC + one_hot_NC.mean(0)).numpy()
    return logits_MC
