"""Nets, the bundle on disk, and the predictor that evaluation, batch scoring and serving share."""
