package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// retention is the package's default, in microseconds.
const retention = int64(24 * time.Hour / time.Microsecond)

// maxIdle is the argument of settingsSQL.
const maxIdle = "60000"

// A request is a first call.
type request struct {
	scope, id   string
	fingerprint []byte
	result      []byte
}

func newRequest(scope, id string, result []byte) *request {
	return &request{scope: scope, id: id, fingerprint: make([]byte, 32), result: result}
}

// request is one with a new key.
func (s *site) request(scopes int, result []byte) *request {
	id := uuid.Must(uuid.NewV7())
	if s.randomIDs {
		id = uuid.New()
	}
	return newRequest(fmt.Sprintf("customer-%d", rand.IntN(scopes)), id.String(), result)
}

// lock is the key's advisory lock.
func (r *request) lock() int64 {
	h := fnv.New64a()
	h.Write([]byte(r.scope + "\x00" + r.id))
	return int64(h.Sum64())
}

// smallResult is 300 bytes of JSON.
var smallResult = []byte(`"` + strings.Repeat("x", 298) + `"`)

type query struct {
	sql  string
	args []any
}

func ask(sql string, args ...any) query { return query{sql, args} }

// A form is how a first call is put into statements. The ctid that a claim
// returns is handed to the record.
type form struct {
	settings []query
	claim    func(*request) query
	read     func(*request) query // nil: none
	record   func(*request, pgtype.TID) query

	// whole, where it is set, is used instead of all these.
	whole func(context.Context, *site, *pgxpool.Conn, *request) error
}

// form is the package's.
func (sql statements) form() form {
	return form{
		settings: []query{ask(sql.settings, maxIdle)},
		claim: func(r *request) query {
			return ask(sql.claim, r.id, r.scope, r.lock(), retention)
		},
		read: func(r *request) query { return ask(sql.read, r.id, r.scope) },
		record: func(r *request, row pgtype.TID) query {
			return ask(sql.record, r.id, r.scope, row, r.fingerprint, r.result, retention, nil)
		},
	}
}

// first makes a first call, with the business write.
func (s *site) first(ctx context.Context, r *request) error { return s.perform(ctx, r, true) }

// alone makes one without: what is left is the record's cost.
func (s *site) alone(ctx context.Context, r *request) error { return s.perform(ctx, r, false) }

func (s *site) perform(ctx context.Context, r *request, business bool) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if s.form.whole != nil {
		err = s.form.whole(ctx, s, conn, r)
	} else {
		err = s.call(ctx, conn, r, business)
	}
	if err != nil && conn.Conn().PgConn().TxStatus() != 'I' {
		_, rollbackErr := conn.Exec(ctx, "rollback")
		err = errors.Join(err, rollbackErr)
	}
	return err
}

// call is the package's protocol: BEGIN and claim in one round trip, record and
// COMMIT in another.
func (s *site) call(ctx context.Context, conn *pgxpool.Conn, r *request, business bool) error {
	var batch pgx.Batch
	batch.BeginTx(pgx.TxOptions{})
	for _, q := range s.form.settings {
		batch.Queue(q.sql, q.args...)
	}
	claim := s.form.claim(r)
	batch.Queue(claim.sql, claim.args...)
	if s.form.read != nil {
		q := s.form.read(r)
		batch.Queue(q.sql, q.args...)
	}
	row, err := readRow(conn.SendBatch(ctx, &batch), 1+len(s.form.settings))
	if err != nil {
		return err
	}
	if business {
		if err := charge(ctx, conn, r); err != nil {
			return err
		}
	}
	return send(ctx, conn, s.form.record(r, row), ask("commit"))
}

// readRow reads the ctid that a claim returned, after some other answers.
func readRow(results pgx.BatchResults, before int) (row pgtype.TID, err error) {
	defer func() { err = errors.Join(err, results.Close()) }()
	for range before {
		if _, err := results.Exec(); err != nil {
			return row, err
		}
	}
	var strict bool // which record is to be used: see lab.site
	return row, results.QueryRow().Scan(&row, &strict)
}

// send sends statements in one round trip.
func send(ctx context.Context, conn *pgxpool.Conn, all ...query) error {
	var batch pgx.Batch
	for _, q := range all {
		batch.Queue(q.sql, q.args...)
	}
	return conn.SendBatch(ctx, &batch).Close()
}

func charge(ctx context.Context, conn *pgxpool.Conn, r *request) error {
	var id int64
	return conn.QueryRow(ctx, businessSQL, r.id, int64(1000)).Scan(&id)
}
