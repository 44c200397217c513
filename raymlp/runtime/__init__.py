"""The machine side: the Ray session, tracking, progress on the screen."""
