"""The fixtures of the tests of inputs."""

from kit.fixtures.inputs import llama, online, tiny_model
