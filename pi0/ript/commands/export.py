"""`pi0-export`: a policy as a program of torch.export, or as a directory for lerobot and the hub."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pi0.errors import say_errors_in_one_line
from pi0.ript.commands.arguments import command_parser, complain, whole_number
from pi0.ript.commands.policy_argument import add_policy_arguments, require_checkpoint
from pi0.ript.files import path_argument
from pi0.ript.origin.evaluation_files import require_evaluation

_EXAMPLES = """
examples:
  pi0-export pi0/ript/output/ript/policy --output exported
  pi0-export my_policy --output exported --batch-size 8 --num-steps 5 --cameras 1
  pi0-export my_openpi_checkpoint --output for_lerobot --format lerobot
  pi0-export pi0/ript/output/ript/policy --push-to-hub me/my_pi0 --private

torch: DIR/sampler.pt2 needs torch and nothing of this package:
  sampler = torch.export.load("DIR/sampler.pt2").module()
  chunk = sampler(images, image_mask, tokens, token_mask, state, noise)
What goes in is what `PI0Policy.preprocess(batch, pad_prompts=True)` returns, and noise; what comes out are
normalised, padded actions (`PI0Policy.decode_actions`). DIR/sampler.json has names, shapes and statistics.
lerobot: DIR is what lerobot's PI0Policy.from_pretrained loads; sizes that it cannot build are refused. Its
README.md is a model card made from the run that the policy lies in: lineage, data, success with intervals and
states, the command that evaluates again, settings, the licence of the base; what is not known is listed.

The result is read back and compared before it appears at DIR. --push-to-hub then uploads DIR by the token of
`hf auth login` (or HF_TOKEN); where that does not work, DIR stays, and the last line says what to run.
exit codes: 0 written, and pushed if asked for; 1 the result does not compute the same; 2 unusable arguments;
3 written to DIR, but not pushed
"""
_NOT_PUSHED = 3
_REPOSITORY = r"\w[\w.-]*/\w[\w.-]*"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    say_errors_in_one_line("pi0-export")  # a full disk
    try:
        _complete(options)
        if options.output.exists():
            raise ValueError(
                f"--output: {str(options.output)!r} is there already; remove it, or name another directory"
            )
        require_checkpoint(options)
        code = _export(options)
    except ValueError as error:
        return complain("pi0-export", error)
    return code or _push(options)


def _complete(options: argparse.Namespace) -> None:
    """Fill in the format and the directory; what does not fit together is a ValueError."""
    name = options.push_to_hub
    if name is not None:
        _require_repository(name)
    if name is None and options.private:
        raise ValueError("--private: is of the repository of --push-to-hub, which is not asked for")
    cards = {"--push-to-hub": name, "--evaluation": options.evaluation}
    asked = [option for option, value in cards.items() if value is not None]
    if asked and options.format == "torch":
        raise ValueError(f"{asked[0]}: is of --format lerobot, found torch")
    options.format = options.format or ("lerobot" if asked else "torch")
    if options.evaluation is not None:
        require_evaluation(options.evaluation)
    if options.output is None:
        if name is None:
            raise ValueError("--output: expected a directory to write to, found none")
        options.output = Path(name.rpartition("/")[2])


def _require_repository(name: str) -> None:
    """Raise ValueError unless a hub would take OWNER/NAME as the name of a repository."""
    from huggingface_hub.errors import HFValidationError  # only if asked for: takes half a second
    from huggingface_hub.utils import validate_repo_id

    if not re.fullmatch(_REPOSITORY, name):
        raise ValueError(f"--push-to-hub: expected OWNER/NAME, found {name!r}")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"--push-to-hub: expected OWNER/NAME, found {name!r}: {error}") from error


def _export(options: argparse.Namespace) -> int:
    from pi0.ript.commands.chosen_policy import load_policy  # torch comes with it
    from pi0.ript.exporting import ExportDiffersError, export, origin_for_card

    origin = origin_for_card(options)  # first: what is wrong with it should not wait for the weights
    policy = load_policy(options)
    print("exporting, then comparing; a real-sized policy takes minutes", flush=True)  # noqa: T201
    try:
        difference = export(policy, options, origin)
    except ExportDiffersError as error:
        return complain("pi0-export", error, code=1)
    print(f"{options.output}: largest difference to the policy {difference:.3g}", flush=True)  # noqa: T201
    return 0


def _push(options: argparse.Namespace) -> int:
    if options.push_to_hub is None:
        return 0
    from pi0.ript.hub_upload import NotPushedError, push

    try:
        address = push(options.output, options.push_to_hub, private=options.private)
    except NotPushedError as error:
        complain("pi0-export", f"not pushed: {error}")
        words = ["hf", "upload", options.push_to_hub, str(options.output), *["--private"] * options.private]
        needed = "with network and a token (hf auth login) run"
        sys.stderr.write(f"{options.output} is complete; {needed}: {shlex.join(words)}\n")
        return _NOT_PUSHED
    print(f"pushed: {address}")  # noqa: T201
    return 0


def _parser() -> argparse.ArgumentParser:
    description = "Export a policy for deployment or for the hub, and check the result against the policy."
    parser = command_parser("pi0-export", description, _EXAMPLES)
    add_policy_arguments(parser)
    add, count = parser.add_argument, whole_number("at least 1", 1)
    where = "must not exist (default with --push-to-hub: the repository's name, here)"
    add("--output", type=path_argument, metavar="DIR", help=where)
    add("--format", choices=("torch", "lerobot"), help="default torch; lerobot with --push-to-hub")
    add(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="upload lerobot's directory with its card to this repository",
    )
    add("--private", action="store_true", help="make the repository private, if it is not there yet")
    found = "what pi0-eval wrote about this policy: its success, states and videos for the card"
    add("--evaluation", type=path_argument, metavar="DIR", help=found)
    add("--batch-size", type=count, default=1, help="of the program (default %(default)s)")
    add("--num-steps", type=count, help="of the sampler (default: as the checkpoint says)")
    add("--cameras", type=count, help="of the program (default: those that the robot has)")
    shards = "GB of one file of weights; lerobot reads only what is in one file, the default"
    add("--max-shard-size", type=float, metavar="GB", help=shards)
    add("--tolerance", type=float, default=1e-4, help="of normalised actions (default %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
