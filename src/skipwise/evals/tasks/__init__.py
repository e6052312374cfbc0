"""Evaluation tasks, one class per file; `skipwise.evals.TASKS` has them by name."""
