"""Tests of the experiment on seed diversity."""
