"""The networks of this project."""

from models.cnn import ResidualCNN, count_parameters

__all__ = ["ResidualCNN", "count_parameters"]
