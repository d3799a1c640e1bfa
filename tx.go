package idempotency

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/remedy"
)

const (
	// rollbackBound is how long a ROLLBACK may take before the connection is
	// given up, which rolls back as well.
	rollbackBound = 5 * time.Second

	// commitBound is how long the answer to a COMMIT is waited for, before its
	// outcome is in doubt. Deferred constraints and synchronous standbys can
	// take their time, and to give up is to abort what was nearly done.
	commitBound = time.Minute
)

// A session is one transaction of Do on a connection of its own. It ends with
// exactly one of commit (nil), confirm (nil) and rollback.
type session struct {
	store *Store
	conn  *pgxpool.Conn
	tx    pgx.Tx
	sql   *statements
	args  keyArgs
	claim claim // once it has claimed the key
	began time.Time

	journal *journal // of a procedure that goes on
	close   bool     // it ends with the record

	askRole bool   // before the record, so that its error can name the role
	role    string // that the function has left, if it was asked for
}

// begin starts a transaction and claims key, in one round trip. There is a
// session if and only if the error is nil. One that has claimed the key while ctx
// ended is given up: its function is not run.
func (s *Store) begin(ctx context.Context, pool *pgxpool.Pool, key Key) (x *session, f finding, err error) {
	for again := false; ; again = true {
		x, f, err = s.beginOn(ctx, pool, key)
		if err == nil || !s.adapt(err, again) {
			return x, f, err
		}
	}
}

func (s *Store) beginOn(ctx context.Context, pool *pgxpool.Pool, key Key) (*session, finding, error) {
	conn, err := acquire(ctx, pool)
	if err != nil {
		return nil, finding{}, explain("acquire a connection", err)
	}
	x := &session{store: s, conn: conn, args: s.keyArgs(key), began: time.Now()}
	var f finding
	err = graced(ctx, conn.Conn(), func(ctx context.Context) (err error) {
		f, err = x.begin(ctx)
		return err
	})
	if err == nil && f.state == claimed {
		err = ctx.Err()
	}
	if err != nil {
		closeReadOnly(conn.Conn(), err)
		x.rollback()
		return nil, finding{}, explain("claim the key", x.sql.remedied(err))
	}
	x.claim = f.claim
	return x, f, nil
}

func (x *session) begin(ctx context.Context) (f finding, err error) {
	if x.sql, err = x.store.table.statements(ctx, x.conn); err != nil {
		return finding{}, err
	}
	if err := checkSent(x.conn.Conn(), x.args.read()...); err != nil {
		return finding{}, err
	}
	if x.sql.distributed {
		return x.beginThere(ctx)
	}
	var batch pgx.Batch
	batch.BeginTx(x.store.cfg.TxOptions)
	batch.Queue(x.sql.claim, x.args.claim()...)
	batch.Queue(x.sql.read, x.args.read()...)
	results := x.conn.SendBatch(ctx, &batch)
	x.tx = results.Tx()
	f, err = readBegin(results)
	if err == nil && f.state == expired {
		f, err = planned(ctx, x.tx, readClaim, x.sql.takeOver, x.args.takeOver())
		f.seen = true
	}
	if err == nil && f.elsewhere {
		err = x.sql.refuse(ctx, x.tx)
	}
	return f, err
}

// wire is what the session is sent through.
func (x *session) wire() net.Conn { return x.conn.Conn().PgConn().Conn() }

func readBegin(results pgx.BatchResults) (f finding, err error) {
	defer closeResults(results, &err)
	if _, err := results.Exec(); err != nil { // BEGIN
		return finding{}, err
	}
	f, err = readClaim(results.QueryRow())
	if err != nil || f.state == claimed {
		return f, err
	}
	return readFound(results.QueryRow())
}

// planned sends one statement behind planSQL, in one batch, and reads its answer.
func planned(ctx context.Context, tx pgx.Tx, read func(pgx.Row) (finding, error), sql string, args []any) (f finding, err error) {
	var batch pgx.Batch
	batch.Queue(planSQL)
	batch.Queue(sql, args...)
	results := tx.SendBatch(ctx, &batch)
	defer closeResults(results, &err)
	if _, err := results.Exec(); err != nil {
		return finding{}, err
	}
	return read(results.QueryRow())
}

// closeResults ends a batch, whose last error is found only then.
func closeResults(results pgx.BatchResults, err *error) {
	if closeErr := results.Close(); *err == nil {
		*err = closeErr
	}
}

// usedUp adds to a deadline that every connection of the pool is in use.
func usedUp(pool *pgxpool.Pool, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if pool := pool.Stat(); pool.AcquiredConns() >= pool.MaxConns() {
		return fmt.Errorf("all connections of the pool are in use (MaxConns is %d): a function that sends a statement through the pool, and not through its tx, holds one and waits for another: %w", pool.MaxConns(), err)
	}
	return err
}

// waitedForThePool is usedUp for the error of a function. If a statement on tx itself
// had met the deadline, pgx would have closed its connection.
func (s *Store) waitedForThePool(tx pgx.Tx, err error) error {
	if conn := connOf(tx); conn == nil || conn.IsClosed() {
		return err
	}
	if explained := usedUp(s.pool, err); explained != err {
		return explain("run the function", explained)
	}
	return err
}

// A failure is an attempt that did not end with an acknowledged COMMIT.
type failure struct {
	err       error
	transient bool      // the same function can succeed in a new transaction
	inDoubt   bool      // the COMMIT was sent, and may have taken effect
	sent      time.Time // when it was sent
	forbidden bool      // the role must not record; nobody has asked which one it is
}

// failed is the failure of a session whose function returned err.
func (x *session) failed(err error) *failure {
	// Run again only if this connection broke: the function may return the error of
	// a connection of its own, or of a deadline of its own.
	lost := (x.closed() && lostConnection(err) || x.sql.lostNode(err)) && !x.outlastedMaxIdle()
	return &failure{err: err, transient: conflicted(err) || lost || stalePlan(err)}
}

// commit stores the result and commits, in one round trip. When recordSQL fails,
// the COMMIT behind it is not executed: the batch has one Sync.
func (x *session) commit(out *answer) *failure {
	if failed := x.checkSent(); failed != nil {
		return failed
	}
	// Not the caller's context: to cancel a COMMIT is to put it in doubt. And not one
	// with a timeout: pgx would watch it, with a timer and nine allocations a call.
	sent := time.Now()
	_ = x.wire().SetDeadline(sent.Add(commitBound))
	record := x.sql.record
	if x.close {
		record = x.sql.journal.finish
	}
	recorded, err := x.finish(context.Background(), record, x.args.record(x.claim, out)...)
	_ = x.wire().SetDeadline(time.Time{})
	if err == nil {
		x.conn.Release()
		return nil
	}
	failed := &failure{err: err, sent: sent}
	if !recorded {
		failed.err = x.sql.explainRecord(err, x.role)
		failed.forbidden = remedy.Denied(err) && !x.askRole
	}
	// A COMMIT or a function that took too long will do so again.
	tooLong := pgconn.Timeout(err) || endedForItsTime(err) || x.outlastedMaxIdle()
	failed.transient = conflicted(err) || failed.forbidden || (x.closed() || x.sql.lostNode(err)) && !tooLong
	failed.inDoubt = !x.inTransaction() && !provesAbort(err)
	return failed
}

// checkSent is for before a record: the function can have changed client_encoding, and the
// record would be that of another key.
func (x *session) checkSent() *failure {
	if err := checkSent(x.conn.Conn(), x.args.read()...); err != nil {
		return &failure{err: explain("record the result", err)}
	}
	return nil
}

// confirm ends a session that found a record while a commit is in doubt. The
// record can be of a commit that the server has made visible but not yet
// replicated, because the wait for the standby was cancelled. After a write of
// our own that has waited in full, the record is as durable as any.
func (x *session) confirm(ctx context.Context) error {
	if _, err := x.finish(ctx, x.sql.confirm, x.sql.onKey(x.args)...); err != nil {
		x.rollback()
		return err
	}
	x.conn.Release()
	return nil
}

// finish sends one statement of ours and COMMIT. A nil error is an acknowledged
// COMMIT; done reports whether the statement succeeded.
func (x *session) finish(ctx context.Context, sql string, args ...any) (done bool, err error) {
	var batch pgx.Batch
	if x.askRole {
		batch.Queue(roleSQL)
	}
	if x.close {
		x.journal.end(x, &batch)
	}
	x.sql.queueStillHere(&batch, x.claim)
	batch.Queue(sql, args...)
	statements := batch.Len()
	batch.Queue(x.store.commitSQL())
	results := x.conn.SendBatch(ctx, &batch)
	defer closeResults(results, &err)
	if x.askRole {
		statements--
		if err := results.QueryRow().Scan(&x.role); err != nil {
			return false, err
		}
	}
	for range statements {
		if _, err := results.Exec(); err != nil {
			return false, err
		}
	}
	tag, err := results.Exec()
	switch {
	case err == nil && tag.String() == "ROLLBACK":
		return true, pgx.ErrTxCommitRollback
	case err != nil && sqlState(err) == "":
		return true, explain("commit", err)
	}
	return true, err // of PostgreSQL: the caller's own deferred constraint, for example
}

// inTransaction: the server has said that the transaction is still open, so
// its COMMIT was not executed.
func (x *session) inTransaction() bool {
	return !x.closed() && x.conn.Conn().PgConn().TxStatus() != 'I'
}

// outlastedMaxIdle: PostgreSQL may have ended the session for its silence. When
// the next write fails, as it does on a Unix socket, its error is never read.
func (x *session) outlastedMaxIdle() bool {
	limit := x.store.cfg.MaxIdle
	return limit > 0 && time.Since(x.began) >= limit
}

func (x *session) closed() bool { return x.conn.Conn().IsClosed() }

// rollback ends the transaction whatever state it is in, and gives the
// connection back; the pool destroys one that is broken.
func (x *session) rollback() {
	// Not the caller's context: a cancelled ROLLBACK costs the connection.
	ctx, cancel := context.WithTimeout(context.Background(), rollbackBound)
	defer cancel()
	if x.inTransaction() {
		_ = x.tx.Rollback(ctx) // on failure pgx closes the connection
	}
	x.conn.Release()
}

func (s *Store) commitSQL() string {
	if query := s.cfg.TxOptions.CommitQuery; query != "" {
		return query
	}
	return "commit"
}
