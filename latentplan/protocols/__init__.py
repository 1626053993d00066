"""The protocols that components implement, which state everything that is required of them.

`acting` holds envs, policies and evaluations, `data` sources and stores, `learning` models and
tokenizers, and `planning` planners and what they search with. Optional abilities are small
protocols of their own, such as `HasSuccessThreshold`.
"""

from latentplan.protocols.acting import (
    AdaptableEnv,
    CostPredictor,
    Env,
    EnvPolicy,
    Evaluation,
    ExpertEnv,
    GoalChoosingPolicy,
    GoalSampler,
    HasEpisodeLength,
    HasSuccessThreshold,
    IllustratedEvaluation,
    Policy,
    RenderedEnv,
)
from latentplan.protocols.component import Component, Configured
from latentplan.protocols.data import (
    AnnotatedSource,
    CountingSource,
    EpisodeStore,
    Source,
    Windows,
)
from latentplan.protocols.learning import (
    DefaultPolicy,
    Dynamics,
    EnsembleDynamics,
    FittedConfig,
    Illustrated,
    LanguageConfig,
    Learner,
    ScalarTokenizer,
    Staged,
    Tokenizer,
    Upgradable,
    VideoModel,
)
from latentplan.protocols.planning import (
    ActionProposer,
    ActionSpace,
    Constraint,
    GoalChecker,
    Objective,
    ObjectiveFactory,
    Planner,
    Proposal,
    SubgoalModel,
)

__all__ = [
    "ActionProposer",
    "ActionSpace",
    "AdaptableEnv",
    "AnnotatedSource",
    "CountingSource",
    "Component",
    "Configured",
    "Constraint",
    "CostPredictor",
    "DefaultPolicy",
    "Dynamics",
    "EnsembleDynamics",
    "Env",
    "EnvPolicy",
    "EpisodeStore",
    "Evaluation",
    "ExpertEnv",
    "FittedConfig",
    "GoalChecker",
    "GoalChoosingPolicy",
    "GoalSampler",
    "HasEpisodeLength",
    "HasSuccessThreshold",
    "Illustrated",
    "IllustratedEvaluation",
    "LanguageConfig",
    "Learner",
    "Objective",
    "ObjectiveFactory",
    "Planner",
    "Policy",
    "Proposal",
    "RenderedEnv",
    "ScalarTokenizer",
    "Source",
    "Staged",
    "SubgoalModel",
    "Tokenizer",
    "Upgradable",
    "VideoModel",
    "Windows",
]
