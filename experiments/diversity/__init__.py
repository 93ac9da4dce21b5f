"""Seed diversity: how different, and how correct, are n images of one prompt?"""
