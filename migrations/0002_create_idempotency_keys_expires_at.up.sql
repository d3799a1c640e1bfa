-- For the purge. Partial, so that a claim, whose expiry is not known yet, costs
-- no entry in it.
create index if not exists idempotency_keys_expires_at on idempotency_keys (expires_at) where expires_at is not null;
