"""Tests of the documentation: its commands, code, settings and links."""
