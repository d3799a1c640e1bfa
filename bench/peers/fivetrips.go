package peers

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// FiveTrips is the name of the pattern as most people write it.
const FiveTrips = "hand-written 5 trips"

func init() {
	register(Peer{
		Name:    FiveTrips,
		About:   "Written by hand, each statement by itself: BEGIN, insert on conflict do nothing, the business write, update with the answer, COMMIT. A duplicate waits on the unique index.",
		Prepare: prepareHandWritten,
		Open:    openFiveTrips,
	})
}

// The table of both hand-written peers, with what ours has: a key of scope and
// id, a fingerprint, an expiry and its index.
const (
	handTableSQL = `
create table hand_keys (
	id          text collate "C" not null,
	scope       text collate "C" not null,
	fingerprint bytea,
	answer      bytea,
	expires_at  timestamptz not null,
	primary key (id, scope)
)`
	handIndexSQL  = `create index on hand_keys (expires_at)`
	handClaimSQL  = `insert into hand_keys (id, scope, fingerprint, expires_at) values ($1, $2, $3, now() + interval '24 hours') on conflict (id, scope) do nothing returning true`
	handReadSQL   = `select fingerprint, answer from hand_keys where id = $1 and scope = $2`
	handRecordSQL = `update hand_keys set answer = $3 where id = $1 and scope = $2`
)

func prepareHandWritten(ctx context.Context, env Env) error {
	return execOnce(ctx, env, handTableSQL, handIndexSQL)
}

type fiveTrips struct{ pool *pgxpool.Pool }

func openFiveTrips(ctx context.Context, env Env) (Client, error) {
	pool, err := env.Pool(ctx)
	return fiveTrips{pool}, err
}

func (h fiveTrips) Close() { h.pool.Close() }

func (h fiveTrips) Do(ctx context.Context, call *Call) (answer string, err error) {
	err = pgx.BeginFunc(ctx, h.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, handClaimSQL, call.ID, call.Scope, fingerprint(call))
		switch {
		case err != nil:
			return err
		case tag.RowsAffected() == 0:
			answer, err = handAnswer(call, tx.QueryRow(ctx, handReadSQL, call.ID, call.Scope))
			return err
		}
		if answer, err = call.Write(ctx, tx); err != nil {
			return err
		}
		call.Written(ctx)
		_, err = tx.Exec(ctx, handRecordSQL, call.ID, call.Scope, []byte(answer))
		return err
	})
	return answer, err
}

// handAnswer reads the recorded answer, if it is of the same request.
func handAnswer(call *Call, row pgx.Row) (string, error) {
	var print, answer []byte
	err := row.Scan(&print, &answer)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", fmt.Errorf("%w: its row was deleted just now", ErrInProgress)
	case err == nil && string(print) != string(fingerprint(call)):
		return "", errors.New("the key was used for another request")
	}
	return string(answer), err
}
