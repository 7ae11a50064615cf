"""Training: recipes, step sampling, parameter groups, checkpoints and the loop."""

from rcnet.training.loop import train
from rcnet.training.recipe import Recipe, find_recipe, list_recipes, read_recipe

__all__ = ["Recipe", "find_recipe", "list_recipes", "read_recipe", "train"]
