"""An embedded chain that is served; these tests train with TensorFlow."""

from tests.helpers.chain import rpc

__all__ = ["rpc"]
