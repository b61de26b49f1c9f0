"""Reasoning data for one's own long videos: split, caption, merge, ask, parse, rewrite, and rows
for SFT and RL.
"""
