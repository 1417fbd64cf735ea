"""Sequential Attention as a feature selector of scikit-learn; its bases are imported when it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from openwork.errors import DataError, RecipeError


def make_estimator(module: str) -> type:
    """The class ``SequentialAttentionSelector``, which pickles as a member of ``module``.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.base import BaseEstimator
        from sklearn.feature_selection import SelectorMixin
        from sklearn.utils.multiclass import type_of_target
        from sklearn.utils.validation import check_is_fitted, validate_data
    except ImportError:
        raise DataError(
            "SequentialAttentionSelector needs scikit-learn; install it: pip install 'openwork[data]'"
        ) from None

    class SequentialAttentionSelector(SelectorMixin, BaseEstimator):  # type: ignore[misc]
        """Keeps the features that `openwork.apps.feature_selection.select_features` picks.

        Parameters are those of the function; ``n_features_to_select=None`` keeps half of the features. A target of
        whole numbers, strings or bools is a class, one of fractions a regression.

        Attributes:
            order_: indices of the kept features, first pick first.
            attention_: gates at the end of each phase, ``(phases, n)`` float32.
            constant_: indices of constant features.
            n_features_in_: features seen in ``fit``.
        """

        def __init__(
            self,
            n_features_to_select: int | None = None,
            *,
            steps: int = 4000,
            per_step: int = 1,
            start: float = 0.1,
            lr: float = 2e-3,
            batch_size: int = 128,
            standardise: bool = True,
            random_state: int = 0,
        ):
            self.n_features_to_select = n_features_to_select
            self.steps = steps
            self.per_step = per_step
            self.start = start
            self.lr = lr
            self.batch_size = batch_size
            self.standardise = standardise
            self.random_state = random_state

        def fit(self, X: Any, y: Any) -> Any:
            """Train once and select; ``X`` ``(rows, n)``, ``y`` ``(rows,)`` or ``(rows, m)``."""
            from openwork.apps.feature_selection import select_features

            X, y = validate_data(self, X, y, dtype=np.float32, multi_output=True)
            kind = type_of_target(y, input_name="y")
            if kind in ("binary", "multiclass"):
                y = np.unique(np.ravel(y), return_inverse=True)[1]
            elif kind in ("continuous", "continuous-multioutput"):
                y = np.asarray(y, dtype=np.float32)
            else:
                raise RecipeError(
                    f"SequentialAttentionSelector: y must hold one class a row or fractions, got a {kind} target. "
                    "Unknown label type; select for one label at a time"
                )
            k = max(1, X.shape[1] // 2) if self.n_features_to_select is None else self.n_features_to_select
            found = select_features(
                X,
                y,
                k,
                steps=self.steps,
                per_step=self.per_step,
                start=self.start,
                lr=self.lr,
                batch_size=self.batch_size,
                standardise=self.standardise,
                seed=self.random_state,
            )
            self.order_ = np.array(found.order)
            self.attention_ = found.attention.numpy()
            self.constant_ = np.array(found.constant, dtype=int)
            return self

        def _get_support_mask(self) -> Any:
            check_is_fitted(self)
            mask = np.zeros(self.n_features_in_, dtype=bool)
            mask[self.order_] = True
            return mask

        def __sklearn_tags__(self) -> Any:
            tags = super().__sklearn_tags__()
            tags.target_tags.required = True
            tags.input_tags.allow_nan = False
            return tags

    SequentialAttentionSelector.__module__ = module
    SequentialAttentionSelector.__qualname__ = "SequentialAttentionSelector"
    return SequentialAttentionSelector
