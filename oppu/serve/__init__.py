"""Answers over HTTP in OpenAI's protocol, each request by the module of the user whom the model name says."""

from oppu.serve.app import create_app, serve
from oppu.serve.engine import Engine, EngineConfig

__all__ = ["Engine", "EngineConfig", "create_app", "serve"]
