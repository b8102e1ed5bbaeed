"""All configuration classes in one namespace."""

from logitcache.cache.format.card import CardConfig
from logitcache.check.repair import RepairConfig
from logitcache.check.verify import VerifyConfig
from logitcache.config import Config
from logitcache.data.packing import ImagesConfig
from logitcache.data.readers import DataConfig
from logitcache.encoding.choice import EncodingConfig
from logitcache.exchange.config import ImportConfig
from logitcache.networks.build import NetworkConfig
from logitcache.objectives.adversarial import AdversarialConfig
from logitcache.objectives.combine import ObjectiveConfig
from logitcache.objectives.episode import EpisodeConfig
from logitcache.objectives.feature_match import MatchConfig
from logitcache.objectives.fuse import FuseConfig
from logitcache.objectives.gate import GateConfig
from logitcache.objectives.label import LabelConfig
from logitcache.objectives.prototypes.assign import AssignConfig
from logitcache.objectives.prototypes.attend import AttendConfig
from logitcache.objectives.relational import RelationConfig
from logitcache.objectives.route import RouteConfig
from logitcache.objectives.soft import SoftConfig
from logitcache.objectives.split import SplitConfig
from logitcache.pipeline.config import PipelineConfig
from logitcache.precompute.config import PrecomputeConfig
from logitcache.students.build import StudentConfig
from logitcache.teachers.member import TeacherConfig
from logitcache.tools.class_means import ClassMeansConfig
from logitcache.tools.fit_weights import FitWeightsConfig
from logitcache.tools.learn_prototypes import LearnPrototypesConfig
from logitcache.tools.pick_bits import PickBitsConfig
from logitcache.tools.pick_hints import PickHintsConfig
from logitcache.tools.synthesize import SynthesizeConfig
from logitcache.training.config import TrainConfig
from logitcache.training.evaluation.evaluate import EvaluateConfig
from logitcache.views.spec import ViewsConfig

__all__ = [
    "AdversarialConfig",
    "AssignConfig",
    "AttendConfig",
    "CardConfig",
    "ClassMeansConfig",
    "Config",
    "DataConfig",
    "EncodingConfig",
    "EpisodeConfig",
    "EvaluateConfig",
    "FitWeightsConfig",
    "FuseConfig",
    "GateConfig",
    "ImagesConfig",
    "ImportConfig",
    "LabelConfig",
    "LearnPrototypesConfig",
    "MatchConfig",
    "NetworkConfig",
    "ObjectiveConfig",
    "PickBitsConfig",
    "PickHintsConfig",
    "PipelineConfig",
    "PrecomputeConfig",
    "RelationConfig",
    "RepairConfig",
    "RouteConfig",
    "SoftConfig",
    "SplitConfig",
    "StudentConfig",
    "SynthesizeConfig",
    "TeacherConfig",
    "TrainConfig",
    "VerifyConfig",
    "ViewsConfig",
]
