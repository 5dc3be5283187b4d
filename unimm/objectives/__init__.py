"""What is optimised: the likelihood of visual tokens under a plan, alone or beside that of text."""

from .likelihood import mixed_likelihood, token_likelihood

__all__ = ["mixed_likelihood", "token_likelihood"]
