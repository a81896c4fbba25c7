"""Supervised training on mixtures of LeRobotDataset v3: settings, reading, order, split, statistics.

data = make_training_data(settings, policy.features, policy.config.chunk_size, batch_size=32)
for batch in data.train:  # endless; data.train.state_dict() is the position
    loss = policy.loss(batch)
"""

from pi0.ript.data.settings import AugmentationSettings, DatasetSettings, MixtureSettings
from pi0.ript.data.training_data import TrainingBatches, TrainingData, ValidationBatches, make_training_data

__all__ = [
    "AugmentationSettings",
    "DatasetSettings",
    "MixtureSettings",
    "TrainingBatches",
    "TrainingData",
    "ValidationBatches",
    "make_training_data",
]
