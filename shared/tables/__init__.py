"""Every row, and what the database promises about it.

Moments (`…_at`, `…_until`) are Unix milliseconds; see `shared.clock` for whose.
"""

from shared.tables.accounts import Account, ApiKey, AuditEntry, LedgerEntry
from shared.tables.batches import Batch, File
from shared.tables.jobs import Attempt, IdempotencyKey, Job, JobContent, JobMetadata
from shared.tables.webhooks import Delivery, DeliveryAttempt, Event, WebhookEndpoint
from shared.tables.workers import Leader, Worker

__all__ = [
    "Account",
    "ApiKey",
    "Attempt",
    "AuditEntry",
    "Batch",
    "Delivery",
    "DeliveryAttempt",
    "Event",
    "File",
    "IdempotencyKey",
    "Job",
    "JobContent",
    "JobMetadata",
    "Leader",
    "LedgerEntry",
    "WebhookEndpoint",
    "Worker",
]
