"""Requests drawn from the OpenAPI document: no error of the server, and only answers that it describes."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks

from served import HOST, make_album
from zsqretrieval.web.app import make_app
from zsqretrieval.web.settings import Settings
