"""Evaluation: how well encoders and indexes do, measured the same way every time."""
