"""A linear read-out: logistic regression on standardised features, kept as one product."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Linear:
    """A fitted linear read-out: one product, where scikit-learn's checks would take most of the time.

    Attributes:
        classes: ``(k,)``.
        weight, bias: ``(channels, k)`` and ``(k,)``, the standardisation of the features included.
    """

    classes: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, classes: np.ndarray) -> "Linear":
        """Logistic regression on standardised features ``(n, channels)``."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(features)
        model = LogisticRegression(max_iter=300).fit(scaler.transform(features), classes)
        weight, bias = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # scikit-learn keeps one row; the other class is at zero
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        weight = (weight / scaler.scale_).T
        return cls(model.classes_, weight.astype(np.float32), (bias - scaler.mean_ @ weight).astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Chance of each class: ``(…, channels)`` → ``(…, k)``."""
        scores = features @ self.weight + self.bias
        chance = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return chance / chance.sum(axis=-1, keepdims=True)
