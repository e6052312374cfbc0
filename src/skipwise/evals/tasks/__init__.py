"""Evaluation tasks, one class in one file each; `skipwise.evals.TASKS` lists them by name."""
