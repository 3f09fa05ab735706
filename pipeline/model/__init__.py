"""The network of the method: all that a released checkpoint carries.

Every file of this folder is copied into a release and loaded there with `trust_remote_code`, so the folder imports
torch and transformers only, and its own files by flat relative imports.
"""

from .configuration_adaponder import AdaPonderConfig
from .modeling_adaponder import AdaPonderForCausalLM, AdaPonderOutput

__all__ = ["AdaPonderConfig", "AdaPonderForCausalLM", "AdaPonderOutput"]
