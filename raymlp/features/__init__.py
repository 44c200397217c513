"""The feature plan: fitted steps from columns to tensors, and the executors that run it."""
