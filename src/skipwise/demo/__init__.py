"""The whole method in minutes, on a small model that is part of the package: measure, extend, measure again, report."""

from skipwise.demo.run import BASE, Claims, DemoSettings, run_demo

__all__ = ["BASE", "Claims", "DemoSettings", "run_demo"]
