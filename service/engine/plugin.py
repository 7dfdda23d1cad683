"""What an engine needs before it loads a model; vLLM runs this in each of its processes."""

from vllm import ModelRegistry

from pruning.models.configuration import CONFIGS, register_configs
from service.engine import loader, punica

MODEL = "service.engine.slim_models:SlimForCausalLM"
ARCHITECTURES = tuple(config.__name__.replace("Config", "ForCausalLM") for config in CONFIGS)


def register() -> None:
    """Register configs, models, loader and CPU wrapper; may be called again."""
    register_configs()
    for architecture in set(ARCHITECTURES) - set(ModelRegistry.get_supported_archs()):
        ModelRegistry.register_model(architecture, MODEL)
    loader.install()
    punica.install()


def missing() -> list[str]:
    """What of ours vLLM does not know, in words; nothing when all is well."""
    known = ModelRegistry.get_supported_archs()
    problems = [f"model {name}" for name in ARCHITECTURES if name not in known]
    return problems + ([] if loader.installed() else ["adapter loader"])
