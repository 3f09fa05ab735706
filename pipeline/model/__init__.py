"""The network of the method: all that a released checkpoint carries.

Every file of this folder is copied into a release and loaded there with `trust_remote_code`, so the folder imports
torch and transformers only, and its own files by flat relative imports.

The network is imported when it is first asked for: for it transformers takes two seconds, and what checks a recipe or
looks for a checkpoint needs the configuration alone.
"""

from typing import TYPE_CHECKING, Any

from .configuration_adaponder import AdaPonderConfig

if TYPE_CHECKING:
    from .modeling_adaponder import AdaPonderForCausalLM, AdaPonderOutput

__all__ = ["AdaPonderConfig", "AdaPonderForCausalLM", "AdaPonderOutput"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import modeling_adaponder

        return getattr(modeling_adaponder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
