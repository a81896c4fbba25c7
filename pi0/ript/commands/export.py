"""`pi0-export`: a policy as a program of torch.export, or as a directory that lerobot loads."""

import argparse
import sys
from collections.abc import Sequence

from pi0.errors import say_errors_in_one_line
from pi0.ript.commands.arguments import command_parser, complain, whole_number
from pi0.ript.commands.policy_argument import add_policy_arguments, require_checkpoint
from pi0.ript.files import path_argument

_EXAMPLES = """
examples:
  pi0-export pi0/ript/output/ript/policy --output exported
  pi0-export my_policy --output exported --batch-size 8 --num-steps 5 --cameras 1
  pi0-export my_openpi_checkpoint --output for_lerobot --format lerobot

torch: DIR/sampler.pt2 needs torch and nothing of this package:
  sampler = torch.export.load("DIR/sampler.pt2").module()
  chunk = sampler(images, image_mask, tokens, token_mask, state, noise)
What goes in is what `PI0Policy.preprocess(batch, pad_prompts=True)` returns, and noise; what comes out are
normalised, padded actions (`PI0Policy.decode_actions`). DIR/sampler.json has names, shapes and statistics.
lerobot: DIR is what lerobot's PI0Policy.from_pretrained loads; sizes that it cannot build are refused.

The result is read back and compared before it appears at DIR.
exit codes: 0 written; 1 the result does not compute the same; 2 unusable arguments
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    say_errors_in_one_line("pi0-export")  # a full disk
    try:
        if options.output.exists():
            raise ValueError(
                f"--output: {str(options.output)!r} is there already; remove it, or name another directory"
            )
        require_checkpoint(options)
        return _export(options)
    except ValueError as error:
        return complain("pi0-export", error)


def _export(options: argparse.Namespace) -> int:
    from pi0.ript.commands.chosen_policy import load_policy  # torch comes with it
    from pi0.ript.exporting import ExportDiffersError, export

    policy = load_policy(options)
    print("exporting, then comparing; a real-sized policy takes minutes", flush=True)  # noqa: T201
    try:
        difference = export(policy, options)
    except ExportDiffersError as error:
        return complain("pi0-export", error, code=1)
    print(f"{options.output}: largest difference to the policy {difference:.3g}")  # noqa: T201
    return 0


def _parser() -> argparse.ArgumentParser:
    description = "Export a policy for deployment, and check the result against the policy."
    parser = command_parser("pi0-export", description, _EXAMPLES)
    add_policy_arguments(parser)
    add, count = parser.add_argument, whole_number("at least 1", 1)
    add("--output", type=path_argument, required=True, metavar="DIR", help="must not exist")
    add("--format", choices=("torch", "lerobot"), default="torch", help="default %(default)s")
    add("--batch-size", type=count, default=1, help="of the program (default %(default)s)")
    add("--num-steps", type=count, help="of the sampler (default: as the checkpoint says)")
    add("--cameras", type=count, help="of the program (default: those that the robot has)")
    shards = "GB of one file of weights; lerobot reads only what is in one file, the default"
    add("--max-shard-size", type=float, metavar="GB", help=shards)
    add("--tolerance", type=float, default=1e-4, help="of normalised actions (default %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
