drop index if exists idempotency_keys_expires_at;
