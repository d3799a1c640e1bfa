package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// retention is the package's default.
var retention = pgtype.Interval{Microseconds: (24 * time.Hour).Microseconds(), Valid: true}

// maxIdle is the time after which a silent transaction is ended, in milliseconds.
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
	sum := sha256.Sum256([]byte(r.scope + "\x00" + r.id))
	return int64(binary.BigEndian.Uint64(sum[:]))
}

// smallResult is 300 bytes of JSON.
var smallResult = []byte(`"` + strings.Repeat("x", 298) + `"`)

type query struct {
	sql  string
	args []any
}

func ask(sql string, args ...any) query { return query{sql, args} }

// keyArgs are the arguments of the settings, the claim and the read, as the package
// numbers them.
func (r *request) keyArgs() []any {
	return []any{r.id, r.scope, r.lock(), retention, maxIdle, "1000"}
}

// recordArgs are those of the record, and the ctid.
func (r *request) recordArgs(c claim) []any {
	return []any{r.id, r.scope, retention, r.fingerprint, r.result, (*string)(nil), c.began, c.table, c.ctid}
}

// A claim is what one returns for the record.
type claim struct {
	began int64
	table uint32
	ctid  pgtype.TID // with statements.ctid
}

// statements are those of a first call.
type statements struct {
	settings            statement // empty: the claim does it
	claim, read, record statement // empty: none
	ctid                bool
}

// A form is how a first call is put into statements.
type form struct {
	statements

	// whole, where it is set, is used instead of all these.
	whole func(context.Context, *site, *pgxpool.Conn, *request) error
}

// form is the package's.
func (sql statements) form() form { return form{statements: sql} }

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
	args, before := r.keyArgs(), 1
	if s.form.settings.sql != "" {
		s.form.settings.queue(&batch, args)
		before++
	}
	s.form.claim.queue(&batch, args)
	if s.form.read.sql != "" {
		s.form.read.queue(&batch, args)
	}
	c, err := s.form.readClaim(conn.SendBatch(ctx, &batch), before)
	if err != nil {
		return err
	}
	if business {
		if err := charge(ctx, conn, r); err != nil {
			return err
		}
	}
	return send(ctx, conn, s.form.record.with(r.recordArgs(c)), ask("commit"))
}

// readClaim reads what a claim returned, after some other answers.
func (f *form) readClaim(results pgx.BatchResults, before int) (c claim, err error) {
	defer func() { err = errors.Join(err, results.Close()) }()
	for range before {
		if _, err := results.Exec(); err != nil {
			return c, err
		}
	}
	var same bool
	columns := []any{&c.began, &c.table, &same}
	if f.ctid {
		columns = append(columns, &c.ctid)
	}
	if err := results.QueryRow().Scan(columns...); err != nil {
		return c, err
	}
	if !same {
		return c, errors.New("the search_path leads to another table")
	}
	return c, nil
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
