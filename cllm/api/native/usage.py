"""GET ``/usage``: requests and tokens by tenant, since the start."""

from __future__ import annotations

from cllm.api.envelopes import success
from cllm.api.service import Service
from cllm.http import HttpRequest, HttpResponse


def usage(service: Service, request: HttpRequest) -> HttpResponse:
    """The key's own tenant; all of them for an admin key, and without a file of keys."""
    visible = service.tenants.visible(request)
    told = [tenant.described() for tenant in visible]
    return success({"seconds": service.uptime, "tenants": told})
