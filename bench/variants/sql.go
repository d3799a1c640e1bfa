package main

// All of the SQL that is measured stands in this file. After a change of a statement
// in postgres.go, this is the one to follow it: a test says what differs, and an edit
// that finds nothing to exchange is an error.

// These are the package's own, which does not export them; a test compares them
// with postgres.go.
const (
	settingsSQL = `
select set_config('idle_in_transaction_session_timeout', $1, true),
	set_config('client_connection_check_interval', '1000', true)`

	claimSQL = `
insert into idempotency_keys (id, scope, purge_after)
select $1::text, $2::text, now() + $4::bigint * interval '1 microsecond'
where pg_try_advisory_xact_lock($3::bigint # 'idempotency_keys'::regclass::oid::bigint)
on conflict (id, scope) do nothing
returning ctid, current_setting('transaction_isolation') = 'serializable'`

	readSQL = `
select fingerprint, result, coalesce(origin, ''), expires_at is null, coalesce(expires_at <= clock_timestamp(), false)
from idempotency_keys
where id = $1 and scope = $2 and pg_current_xact_id_if_assigned() is null`

	recordSQL = `
with recorded as (
	update idempotency_keys
	set fingerprint = $4, result = $5, origin = $7, completed_at = clock_timestamp(),
		expires_at = clock_timestamp() + $6::bigint * interval '1 microsecond',
		purge_after = now() + $6::bigint * interval '1 microsecond'
	where id = $1 and scope = $2 and ctid >= $3 and ctid <= $3
	returning 1
)
select 1 / count(*) from recorded`
)

type statements struct{ settings, claim, read, record string }

var ownStatements = statements{settingsSQL, claimSQL, readSQL, recordSQL}

// Edits of the package's statements.
var (
	readAlways    = []edit{{" and pg_current_xact_id_if_assigned() is null", ""}}
	raisesNothing = []edit{{"with recorded as (", ""}, {"	returning 1\n)\nselect 1 / count(*) from recorded", ""}}
	byKey         = []edit{{" and ctid >= $3 and ctid <= $3", " and $3::tid is not null"}}
	byRange       = []edit{{"ctid >= $3 and ctid <= $3", "$3 <= ctid and $3 >= ctid"}}

	// byCTID records as under SERIALIZABLE. PostgreSQL prunes a page that an index, or a
	// range of ctids, leads to, but not one that a ctid leads to.
	byCTID = []edit{{" and ctid >= $3 and ctid <= $3", " and ctid = $3"}}
)

// Other ways to write them.
const (
	valuesClaimSQL = `
insert into idempotency_keys (id, scope, purge_after)
values ($1, $2, now() + $3::bigint * interval '1 microsecond')
on conflict (id, scope) do nothing
returning ctid, current_setting('transaction_isolation') = 'serializable'`

	foldedClaimSQL = `
insert into idempotency_keys (id, scope, purge_after)
select $1::text, $2::text, now() + $4::bigint * interval '1 microsecond'
where set_config('idle_in_transaction_session_timeout', $5, true) is not null
	and set_config('client_connection_check_interval', '1000', true) is not null
	and pg_try_advisory_xact_lock($3::bigint # 'idempotency_keys'::regclass::oid::bigint)
on conflict (id, scope) do nothing
returning ctid, current_setting('transaction_isolation') = 'serializable'`

	updateByKeySQL = `
update idempotency_keys
set fingerprint = $3, result = $4, completed_at = clock_timestamp(),
	expires_at = clock_timestamp() + $5::bigint * interval '1 microsecond',
	purge_after = now() + $5::bigint * interval '1 microsecond'
where id = $1 and scope = $2`

	checkIntervalSQL = "set local client_connection_check_interval = 1000"
	idleTimeoutSQL   = "set local idle_in_transaction_session_timeout = " + maxIdle
)

// The statements of protocols that are not ours.
const (
	insertDoneSQL = `
insert into idempotency_keys (purge_after, id, scope, completed_at, expires_at, fingerprint, result)
values (now() + $3::bigint * interval '1 microsecond', $1, $2, clock_timestamp(), clock_timestamp() + $3::bigint * interval '1 microsecond', $4, $5)`

	tryLockSQL  = `select pg_try_advisory_xact_lock($1)`
	lookUpSQL   = `select fingerprint, result from idempotency_keys where id = $1 and scope = $2`
	forUpdSQL   = lookUpSQL + ` for update`
	rawClaimSQL = `insert into idempotency_keys (id, scope, purge_after) values ($1, $2, now() + $3::bigint * interval '1 microsecond')`
)

// businessTable and businessSQL are the transaction that is to happen once.
const (
	businessTable = `
create table charges (
	id     bigint generated always as identity primary key,
	key    text not null,
	amount bigint not null
)`
	businessSQL = `insert into charges (key, amount) values ($1, $2) returning id`
)
