package main

// Everything that differs from the package's statements, and that is not one of its
// own, stands in this file. The package's texts are read from its postgres.go: what
// stands here are edits of them, and an edit that finds nothing to exchange is an
// error. {name} is the text of a constant of postgres.go.

// Edits of the claim and the read.
var (
	noSettings = []edit{
		{from: "\n\tand {idleTimeoutSQL} is not null"},
		{from: "\n\tand {checkIntervalSQL} is not null"},
	}
	anyPlan = []edit{
		{from: "case when {keepSeqscanSQL} is not null then\n\t{seqscanOffSQL} is not null\n\tand "},
		{from: "pg_try_advisory_xact_lock({lockNumberSQL}) end", to: "pg_try_advisory_xact_lock({lockNumberSQL})"},
		{from: "{restoreSeqscanSQL} is not null\n\t\tand "},
	}
	byValues = []edit{
		{from: "select $1::text, $2::text, now() + $4::interval", to: "values ($1::text, $2::text, now() + $4::interval)"},
		{from: "\nwhere case when", upTo: ") end"},
	}
	readAlways = []edit{
		{from: "\n\t\tand (current_setting('idempotency.claimed'::text, true) = pg_current_xact_id_if_assigned()::text) is not true"},
	}
)

// Statements that do alone what an edit has taken out of the claim.
const (
	settingsSQL        = "select {idleTimeoutSQL}, {checkIntervalSQL}"
	settingsAndPlanSQL = "{planSQL}, {idleTimeoutSQL}, {checkIntervalSQL}"
)

// Edits of the record. $9 is the ctid, which the package does not ask for.
var (
	unchecked = []edit{
		{from: "with recorded as (\n\t"},
		{from: "\n\treturning fingerprint", upTo: "end)::integer"},
	}
	updateByKey = []edit{
		{from: "with recorded as (\n\tinsert into", upTo: "do update\n", to: "update idempotency_keys\n"},
		{from: "excluded.completed_at", to: "clock_timestamp()"},
		{from: "excluded.purge_after", to: "now() + $3::interval"},
		{from: "\n\treturning fingerprint", upTo: "end)::integer", to: "\n\twhere id = $1::text and scope = $2::text"},
	}
	updateByCTID = append([]edit{
		{from: "{claimedSQL} is not null and {sameTableSQL}", to: "{claimedSQL} is not null and {sameTableSQL}, ctid"},
	}, append(updateByKey, edit{
		from: "\n\twhere id = $1::text and scope = $2::text", to: "\n\twhere id = $1::text and scope = $2::text and ctid = $9::tid",
	})...)
)

// The statements of protocols that are not ours.
const (
	insertDoneSQL = `
insert into idempotency_keys (purge_after, id, scope, completed_at, expires_at, fingerprint, result)
values (now() + $3::interval, $1, $2, clock_timestamp(), clock_timestamp() + $3::interval, $4, $5)`

	tryLockSQL  = `select pg_try_advisory_xact_lock($1)`
	lookUpSQL   = `select fingerprint, result from idempotency_keys where id = $1 and scope = $2`
	forUpdSQL   = lookUpSQL + ` for update`
	rawClaimSQL = `insert into idempotency_keys (id, scope, purge_after) values ($1, $2, now() + $3::interval)`
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
