"""Tumours, benign or malignant, by 30 measurements of cells: the data set breast_cancer that scikit-learn ships."""

import keras
import numpy as np
from sklearn.datasets import load_breast_cancer

TEST = 114


def load_data(shard: int | None, learners: int) -> tuple[np.ndarray, np.ndarray]:
    """Return samples and labels: of learner `shard` (1 to `learners`), or the test samples if it is None."""
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:-TEST], order[-TEST:]
    # Known to all learners: by the training samples of all, which real learners would have to agree on otherwise.
    x = (x - x[train].mean(axis=0)) / x[train].std(axis=0)
    mine = test if shard is None else np.array_split(train, learners)[shard - 1]
    return x[mine], y[mine]


def build_model() -> keras.Model:
    """Return a small perceptron, not compiled: the plan says how it is trained."""
    return keras.Sequential(
        [
            keras.Input((30,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
