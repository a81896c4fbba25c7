"""null in lerobot's config.json where a default is meant ends with a TypeError, or is kept as a value (lerobot#3355, #4655)."""

import json

from case_sets import WORK, check, end
from conftest import toy_policy

from pi0.pretrained import describe

toy_policy().save_pretrained(WORK / "p")
(WORK / "p/pi0_config.json").unlink()
plain = json.loads((WORK / "p/config.json").read_text()) | {"image_resolution": [224, 224]}


def says(**changes):
    (WORK / "p/config.json").write_text(json.dumps(plain | changes))
    found = describe(WORK / "p", None, None, None, None)
    return found.config


unknown = {
    "resize_imgs_with_padding": [224, 224],
    "proj_width": 1024,
    "attention_implementation": "eager",
    "use_peft": False,
    "rtc_training_config": None,
}
check(says(**unknown) == says(), "unknown keys are ignored")
for key in (
    "dtype",
    "image_resolution",
    "num_inference_steps",
    "chunk_size",
    "n_action_steps",
    "max_state_dim",
    "max_action_dim",
    "tokenizer_max_length",
    "min_period",
    "max_period",
    "time_sampling_beta_alpha",
    "time_sampling_scale",
    "time_sampling_offset",
    "gradient_checkpointing",
    "paligemma_variant",
    "action_expert_variant",
    "n_obs_steps",
    "time_sampling_beta_beta",
    "normalization_mapping",
):
    try:
        config = says(**{key: None})
        kept = [name for name, value in vars(config).items() if value is None]
        check(not kept, f"{key}=null: the default" + (f", but {kept} is None" if kept else ""))
    except Exception as error:  # noqa: BLE001 - a traceback is an outcome
        is_clear = isinstance(error, ValueError) and key in str(error) and "config.json" in str(error)
        check(
            is_clear,
            f"{key}=null: the default, or one line with file and key: {type(error).__name__}: {str(error)[:110]}",
        )

end()
