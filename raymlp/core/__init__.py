"""Records, metrics, errors and files: the words everything else is said in. Imports nothing of ours."""
