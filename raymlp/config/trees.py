"""Gradient-boosted trees. An epoch of training is `rounds_per_epoch` boosting rounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raymlp.config.section import Section


class _Boosting(Section):
    """What XGBoost and LightGBM have in common."""

    rounds_per_epoch: int = Field(default=50, ge=1)
    """Boosting rounds, each one tree (one a class where there are several), that count as an epoch: `train.epochs` times as many are the
    most, and `train.stopping.patience`, reports, checkpoints and tuning count by them. The best single round is kept."""

    learning_rate: float = Field(default=0.05, gt=0, le=1)
    """Factor on the leaves of each tree: smaller takes more rounds."""

    subsample: float = Field(default=0.8, gt=0, le=1)
    """Share of the rows that each tree sees."""

    feature_share: float = Field(default=0.8, gt=0, le=1)
    """Share of the features that each tree sees."""

    l1: float = Field(default=0.0, ge=0)
    """L1 penalty on leaves."""

    min_gain: float = Field(default=0.0, ge=0)
    """Smallest gain of a split."""

    max_categories: int = Field(default=2048, ge=2, le=1 << 16)
    """Ids up to which a category is divided by any subset of them; one with more ids is taken as a number."""


class XGBoost(_Boosting):
    """XGBoost on histograms (Chen and Guestrin 2016). Needs raymlp[gbdt]."""

    kind: Literal["xgboost"] = "xgboost"

    max_depth: int = Field(default=6, ge=1, le=16)
    """Splits from the root to a leaf."""

    min_child_weight: float = Field(default=1.0, ge=0)
    """Smallest sum of second derivatives in a leaf: for squared error, rows."""

    l2: float = Field(default=1.0, ge=0)
    """L2 penalty on leaves."""

    max_bins: int = Field(default=256, ge=2, le=4096)
    """Bins of a number."""


class LightGBM(_Boosting):
    """LightGBM, which splits the leaf that gains most (Ke et al. 2017). Needs raymlp[gbdt]."""

    kind: Literal["lightgbm"] = "lightgbm"

    num_leaves: int = Field(default=31, ge=2, le=4096)
    """Leaves of a tree."""

    max_depth: int = Field(default=0, ge=0, le=64)
    """Most splits from the root to a leaf; 0 is no limit."""

    min_leaf_rows: int = Field(default=20, ge=1)
    """Fewest rows in a leaf."""

    l2: float = Field(default=0.0, ge=0)
    """L2 penalty on leaves."""

    max_bins: int = Field(default=255, ge=2, le=4096)
    """Bins of a number."""


Trees = XGBoost | LightGBM
