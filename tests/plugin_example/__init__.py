"""A package outside the library that adds a model, an environment and an algorithm; see docs/extending.md."""

from pi0.registry import register_config
from pi0.ript.envs import register_env
from pi0.ript.loss import register_algorithm
from plugin_example.line import LineSuite
from plugin_example.model import SKIP
from plugin_example.objective import SuccessLoss

register_config("line_skip", SKIP)
register_env("line", LineSuite)
register_algorithm("successes", lambda policy, algo: SuccessLoss(policy, algo.num_draws))
