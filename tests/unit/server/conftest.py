"""The fixtures of the server's tests."""

from kit.fixtures.server import base, engine, kind, new_engine, shelf
