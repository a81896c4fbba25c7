"""`pi0-recap --plan`: what a run of RECAP takes on a number of GPUs, computed before anything is rented."""

import argparse
from collections.abc import Sequence

from pi0.ript.commands.arguments import command_parser, complain, whole_number
from pi0.ript.config import load_config_from_yaml
from pi0.ript.config.command_line import key_value_pairs
from pi0.ript.files import path_argument
from pi0.ript.recap import RecapConfig
from pi0.ript.recap.gpus import GPUS, gpu_named

_EXAMPLES = """examples:
  pi0-recap --plan --gpus 8 --gpu H100 --config_path configs/recap_libero.yaml
  pi0-recap --plan --gpus 16 --gpu A100 --price-per-hour 1.8 --config_path FILE policy.freeze=expert_only"""


def main(arguments: Sequence[str]) -> int:
    """Print the plan and return the exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        config = load_config_from_yaml(options.config_path, key_value_pairs(rest), schema=RecapConfig)
        gpu_named(options.gpu)
        from pi0.ript.recap.cluster_plan import plan  # torch comes with it

        for line in plan(config, options.gpus, options.gpu, options.price_per_hour):
            print(line)  # noqa: T201
    except (ValueError, ModuleNotFoundError) as error:  # LIBERO counts its tasks
        return complain(parser.prog, error)
    return 0


def _parser() -> argparse.ArgumentParser:
    description = "Compute, by formulas, what a run of RECAP with a real pi0 takes. Nothing is started."
    parser = command_parser("pi0-recap --plan", description, _EXAMPLES)
    add = parser.add_argument
    add("--plan", action="store_true", help="this command")
    add("--gpus", type=whole_number("a number of GPUs", 1), required=True, metavar="N")
    add("--gpu", required=True, metavar="NAME", help=", ".join(GPUS))
    add("--price-per-hour", type=float, metavar="P", help="of one GPU, in whatever currency")
    add("--config_path", type=path_argument, required=True, metavar="FILE", help="a configuration of RECAP")
    return parser
