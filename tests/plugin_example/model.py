"""A model: pi0 whose velocity also has a linear path from the noisy actions, past the action expert."""

from dataclasses import dataclass

from pi0 import GemmaConfig, Pi0Config, Pi0Model, SiglipConfig, WeightLoader, toy_config
from pi0.layers import Linear


class SkipModel(Pi0Model):
    def _build(self, config):
        super()._build(config)
        self.skip = Linear(config.max_action_dim, config.max_action_dim)

    def velocity(self, context, x_t, time_features, *, in_place=False):
        return super().velocity(context, x_t, time_features, in_place=in_place) + 0.1 * self.skip(x_t)


@dataclass(frozen=True)
class SkipConfig(Pi0Config):
    def create(self, seed=0, device="cpu"):
        return SkipModel(self, seed=seed, device=device)

    def weight_loader(self):
        return WeightLoader(new=(r"^skip\.",))  # a checkpoint of plain pi0 has none

    def freeze_filter(self):
        return r"vision\."  # with policy.freeze=null


TINY = GemmaConfig(width=32, depth=1, mlp_dim=32, num_heads=2, head_dim=16)
PLAIN = toy_config(
    512,
    vlm=TINY,
    expert=TINY,
    vision=SiglipConfig(width=32, depth=1, num_heads=2, mlp_dim=32, patch_size=8, image_size=8),
    chunk_size=4,
    n_action_steps=4,
    max_state_dim=2,
    max_action_dim=1,
    num_inference_steps=2,
)
SKIP = SkipConfig(**vars(PLAIN))
